/* Overlay mounts through mount(2), for kernels without "lowerdir+": all options in one page of text. */

#include <sys/mount.h>

#include "attach.h"
#include "overlay.h"
#include "syscalls.h"
#include "util.h"

/* Text that may turn out too long: it is counted to its end, and kept as far as it fits. */
struct page {
	char *text;
	size_t size;
	size_t length;
};

static void put(struct page *page, char character)
{
	if (page->length + 1 < page->size)
		page->text[page->length] = character;
	page->length++;
}

static void put_text(struct page *page, const char *text)
{
	for (; *text; text++)
		put(page, *text);
}

/* Colons part lower layers, commas part options, and a backslash takes their meaning away (fs/overlayfs/params.c). */
static void put_path(struct page *page, const char *path)
{
	for (; *path; path++) {
		if (*path == '\\' || *path == ':' || *path == ',')
			put(page, '\\');
		put(page, *path);
	}
}

/* The layers of an overlay in one row: lowerdirs, datadirs, upperdir, workdir. */
static size_t layer_count(const struct nsnap_overlay *overlay)
{
	return overlay->lowerdir_count + overlay->datadir_count + (overlay->upperdir ? 1 : 0) +
	       (overlay->workdir ? 1 : 0);
}

static const char *layer(const struct nsnap_overlay *overlay, size_t index)
{
	if (index < overlay->lowerdir_count)
		return overlay->lowerdirs[index];
	index -= overlay->lowerdir_count;
	if (index < overlay->datadir_count)
		return overlay->datadirs[index];
	index -= overlay->datadir_count;
	return index == 0 && overlay->upperdir ? overlay->upperdir : overlay->workdir;
}

/* Puts layer number `index`, by its own path, or by the descriptor opened for it. */
static void put_layer(struct page *page, const struct nsnap_overlay *overlay, size_t index,
		      const int *layer_fds)
{
	if (layer_fds)
		put_text(page, fd_path(layer_fds[index]).text);
	else
		put_path(page, layer(overlay, index));
}

static void write_options(struct page *page, const struct nsnap_overlay *overlay, const int *layer_fds)
{
	size_t lowers = overlay->lowerdir_count + overlay->datadir_count;
	size_t next = lowers;

	page->length = 0;
	put_text(page, "lowerdir=");
	for (size_t i = 0; i < lowers; i++) {
		if (i > 0)
			put_text(page, i < overlay->lowerdir_count ? ":" : "::");
		put_layer(page, overlay, i, layer_fds);
	}
	if (overlay->upperdir) {
		put_text(page, ",upperdir=");
		put_layer(page, overlay, next++, layer_fds);
	}
	if (overlay->workdir) {
		put_text(page, ",workdir=");
		put_layer(page, overlay, next, layer_fds);
	}
	for (size_t i = 0; i < overlay->option_count; i++) {
		put(page, ',');
		put_text(page, overlay->options[i]);
	}
	page->text[page->length < page->size ? page->length : page->size - 1] = '\0';
}

static errint_t mount_page(const struct page *page, const struct nsnap_overlay *overlay, int target_fd,
			   struct nsnap_failure *failure)
{
	unsigned long flags = overlay->readonly ? MS_RDONLY : 0;

	if (mount("overlay", fd_path(target_fd).text, "overlay", flags, page->text) < 0)
		return with_message(failure, fail(failure, -errno, "mount overlay"), OVERLAY_REASON);
	return 0;
}

/* Names of descriptors are shorter than most paths, so more layers fit; /proc/mounts shows them, which is why they
 * are not the first choice. */
static errint_t mount_by_descriptors(struct page *page, const struct nsnap_overlay *overlay, int target_fd,
				     int *layer_fds, size_t *opened, struct nsnap_failure *failure)
{
	for (; *opened < layer_count(overlay); (*opened)++) {
		int layer_fd = open(layer(overlay, *opened), O_PATH | O_DIRECTORY | O_CLOEXEC);

		if (layer_fd < 0)
			return fail_index(failure, -errno, "open layer", *opened);
		layer_fds[*opened] = layer_fd;
	}
	write_options(page, overlay, layer_fds);
	if (page->length >= page->size) {
		fail(failure, -E2BIG, "mount overlay");
		(void)snprintf(failure->message, sizeof(failure->message),
			       "%zu layers need %zu bytes of options, and mount(2) reads one page (%zu)",
			       layer_count(overlay), page->length + 1, page->size);
		return -E2BIG;
	}
	return mount_page(page, overlay, target_fd, failure);
}

errint_t nsnap_overlay_mount_page(const struct nsnap_overlay *overlay, int target_dir_fd, const char *target,
				  struct nsnap_failure *failure)
{
	cleanup_close int target_fd = open_mount_point(target_dir_fd, target, failure);
	struct page page = {.size = (size_t)sysconf(_SC_PAGESIZE)};
	cleanup_free char *text = malloc(page.size);
	cleanup_free int *layer_fds = NULL;
	size_t opened = 0;
	errint_t result;

	if (target_fd < 0)
		return target_fd;
	layer_fds = calloc(layer_count(overlay) + 1, sizeof(*layer_fds));
	if (!text || !layer_fds)
		return fail(failure, -ENOMEM, "malloc");
	page.text = text;
	write_options(&page, overlay, NULL);
	if (page.length < page.size)
		return mount_page(&page, overlay, target_fd, failure);
	result = mount_by_descriptors(&page, overlay, target_fd, layer_fds, &opened, failure);
	while (opened > 0)
		(void)close(layer_fds[--opened]);
	return result;
}
