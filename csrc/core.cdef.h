/*
 * What Python may call: the whole interface of the C core.
 *
 * This file is read twice, by cffi (build_core.py) and by the compiler (nsnap.h), so that the two cannot disagree.
 * It therefore holds declarations only: no preprocessor lines.
 *
 * Conventions
 * - A function returns zero, or the descriptor or number it is asked for, and -errno on failure.
 * - On failure, and only then, *failure says which step it was. It is never NULL.
 * - A descriptor that is returned belongs to the caller and is close-on-exec; those passed in are only borrowed.
 * - Nothing is printed, nothing is kept between calls: every function may run in many threads at once.
 */

typedef int errint_t;

struct nsnap_failure {
	const char *step;  /* the system call, and what it was to do; static text */
	int64_t index;     /* which of the caller's paths or names, counted from 0; -1: none in particular */
	char subject[256]; /* the option or directory entry it concerned; may be empty */
	char message[512]; /* what the kernel, or we, have to add; may be empty */
};

/* ---- overlay.c, overlay_page.c: a detached overlay mount, or one made by mount(2) ---- */

struct nsnap_overlay {
	const char *const *lowerdirs; /* topmost first */
	size_t lowerdir_count;
	const char *const *datadirs; /* data-only layers, below all lowerdirs */
	size_t datadir_count;
	/* NULL, or for each lowerdir and datadir in a row: -1, or the detached tree that its path, a relative one, is in.
	 * EINVAL: the kernel takes no layers by descriptor (before Linux 6.13), or none that is detached (6.15). */
	const int *tree_fds;
	const char *upperdir;       /* NULL: none, and then the overlay is read-only */
	const char *workdir;        /* NULL if and only if upperdir is */
	const char *const *options; /* "name=value" or "name"; no comma in them */
	size_t option_count;
	bool readonly;
};

/* 1 if fsconfig(2) takes "lowerdir+" here, 0 if the kernel is too old for it. */
errint_t nsnap_overlay_appends(struct nsnap_failure *failure);

/* A detached overlay mount, as a descriptor. failure->index counts lowerdirs, datadirs, upperdir, workdir, in a row. */
errint_t nsnap_overlay_create(const struct nsnap_overlay *overlay, struct nsnap_failure *failure);

/* The same by mount(2), straight onto target, and without tree_fds. E2BIG: the layers do not fit into the one page that mount(2) reads. */
errint_t nsnap_overlay_mount_page(const struct nsnap_overlay *overlay, int target_dir_fd, const char *target,
				  struct nsnap_failure *failure);

/* ---- bind.c, attach.c, lock.c: detached trees, their attributes, and where they go ---- */

enum nsnap_attribute {
	NSNAP_READONLY = 1,
	NSNAP_NOSUID = 2,
	NSNAP_NODEV = 4,
	NSNAP_NOEXEC = 8,
	NSNAP_NOATIME = 16,
	NSNAP_NOSYMFOLLOW = 32,
};

enum nsnap_propagation {
	NSNAP_PROPAGATION_KEEP,
	NSNAP_PROPAGATION_PRIVATE,
	NSNAP_PROPAGATION_SLAVE,
	NSNAP_PROPAGATION_SHARED,
	NSNAP_PROPAGATION_UNBINDABLE,
};

struct nsnap_attributes {
	uint32_t set;   /* enum nsnap_attribute, or-ed */
	uint32_t clear; /* likewise; what is in neither stays as it is */
	int propagation;
	int userns_fd; /* show the tree's owners mapped by this user namespace; -1: no */
};

/* A detached copy of the mount, or tree of mounts, at path. ELOOP: path is a symlink, which is not followed. */
errint_t nsnap_clone_tree(int dir_fd, const char *path, bool recursive, struct nsnap_failure *failure);

/* Changes a mount, detached or attached; recursively, either every mount of the tree changes or none does. */
errint_t nsnap_set_attributes(int tree_fd, const struct nsnap_attributes *attributes, bool recursive,
			      struct nsnap_failure *failure);

/* Puts a detached mount onto target. ELOOP: target is a symlink. Empty target: target_dir_fd itself. */
errint_t nsnap_attach(int tree_fd, int target_dir_fd, const char *target, struct nsnap_failure *failure);

/* Forgets the names that the file system mounted at path has looked up, but for those in use. ENOSYS before Linux 5.2. */
errint_t nsnap_forget_names(const char *path, struct nsnap_failure *failure);

/*
 * A detached clone of a detached directory whose attributes (read-only, nosuid, nodev, noexec, access times) are locked:
 * no user namespace that it is moved into can clear them. The tree itself is used up.
 */
errint_t nsnap_lock_tree(int tree_fd, struct nsnap_failure *failure);

/* Takes the topmost mount off path, which is not followed. detach: at once, and for good when its last user goes. */
errint_t nsnap_unmount(const char *path, bool detach, struct nsnap_failure *failure);

/* ---- userns.c ---- */

/* A user namespace with these maps, in the format of /proc/PID/uid_map. No process stays in it. */
errint_t nsnap_userns_create(const char *uid_map, const char *gid_map, struct nsnap_failure *failure);

/* ---- probe.c ---- */

enum nsnap_magic {
	NSNAP_OVERLAYFS_MAGIC = 0x794c7630,
};

struct nsnap_mount_probe {
	uint64_t mount_id; /* as in /proc/self/mountinfo */
	uint64_t filesystem_magic;
	bool is_root; /* path is the root of that mount */
};

/* What path, which is not followed, lies on. */
errint_t nsnap_probe_mount(const char *path, struct nsnap_mount_probe *probe, struct nsnap_failure *failure);

/* 1 if the entries of this directory come with their type (d_type), 0 if not; ENOENT: it has no entries. */
errint_t nsnap_directory_has_types(int dir_fd, struct nsnap_failure *failure);

/* ---- open.c ---- */

/* Opens a path below dir_fd: no component may be a symlink, nor lead out of it. */
errint_t nsnap_open_beneath(int dir_fd, const char *path, uint64_t flags, uint64_t mode,
			    struct nsnap_failure *failure);

/* ---- stub.c, stub_tree.c ---- */

struct nsnap_stub_counts {
	uint64_t directories;
	uint64_t symlinks;
	uint64_t linked; /* regular files, by how they got there */
	uint64_t cloned;
	uint64_t copied;
	uint64_t data_only; /* empty files that lead to the store's, made anew */
	uint64_t shared;    /* the same, hard links to another layer's */
	uint64_t left_out;  /* devices, pipes and sockets, of which no store has any */
};

/*
 * Fills the directory with a stand-in for each named entry of the store: for a directory an empty one (with the
 * overlay redirect `redirect_prefix` + name in the named xattr, unless redirect_xattr is NULL), for a symlink the same
 * symlink, for a regular file a hard link, else a reflink, else a copy. Mode and mtime are the entry's, and with
 * keep_ids its owner and set-id bits; without, what is made has its maker's ids and no such bits.
 * names: NUL-terminated, one behind the other, names_size bytes in all. failure->index and subject tell the name.
 * After a failure the directory holds a part of them; the caller removes it.
 */
errint_t nsnap_stub_fill(int dir_fd, int store_fd, const char *names, size_t names_size, bool keep_ids,
			 const char *redirect_xattr, const char *redirect_prefix,
			 struct nsnap_stub_counts *counts, struct nsnap_failure *failure);

struct nsnap_stub_trees {
	int dir_fd;   /* the directory to fill */
	int store_fd; /* the store, which is the data-only layer */
	const char *names;
	size_t names_size;
	const char *metacopy_xattr; /* for "this file's data lies in another layer"; empty value */
	const char *redirect_xattr; /* for where */
	const int *donor_fds; /* directories filled before; what is in them as it would be made is linked */
	size_t donor_count;
	bool keep_ids;
};

/*
 * Fills the directory with a stand-in for each named entry of the store and all below it: directories and symlinks as
 * they are, and for a regular file an empty one of its length, mode and mtime that leads to it (overlayfs, "data-only
 * lower layers"). A file too deep for that (its path has to fit into an attribute) is copied.
 * Otherwise as nsnap_stub_fill; failure->message is the place within the entry.
 */
errint_t nsnap_stub_fill_trees(const struct nsnap_stub_trees *trees, struct nsnap_stub_counts *counts,
			       struct nsnap_failure *failure);

/* ---- shift.c ---- */

struct nsnap_id_range {
	uint32_t inside;
	uint32_t outside;
	uint32_t length;
};

/*
 * Gives everything below a directory, but not itself, to the ids outside; ids that no range has inside stay. Of what
 * is in the directory shallow_fd (-1: none) only the entries change, not what is in them. No symlink is followed and no
 * mount entered (EXDEV). After a failure a part of them has changed.
 */
errint_t nsnap_shift_owners(int dir_fd, int shallow_fd, const struct nsnap_id_range *uids, size_t uid_count,
			    const struct nsnap_id_range *gids, size_t gid_count,
			    struct nsnap_failure *failure);

/* ---- remove.c, usage.c: whole trees of any depth ---- */

/* Removes what name is, and all below it; no symlink is followed, no mount entered (EBUSY, EXDEV). Absent is fine. */
errint_t nsnap_remove_tree(int dir_fd, const char *name, struct nsnap_failure *failure);

struct nsnap_usage {
	uint64_t inodes;
	uint64_t size_bytes; /* allocated blocks, not lengths */
};

/* Space of the tree at path, which is not followed: each inode once, path itself included, mounts entered. */
errint_t nsnap_disk_usage(const char *path, struct nsnap_usage *usage, struct nsnap_failure *failure);
