// A program as careful as sudo: it does root's work only if its own file and those that it is given can be changed by
// nobody but root. It says who runs it and as whom it runs, what it finds, and makes the file /made-by-root.
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static int distrusts(const char *path, unsigned int wanted)
{
	struct stat status;
	if (stat(path, &status) != 0) {
		perror(path);
		return 1;
	}
	int wrong = status.st_uid != 0 || status.st_gid != 0 || (status.st_mode & (S_IWGRP | S_IWOTH)) != 0 ||
		    (status.st_mode & wanted) != wanted;
	printf("%s %u:%u %o%s\n", path, status.st_uid, status.st_gid, status.st_mode & 07777,
	       wrong ? " distrusted" : "");
	return wrong;
}

int main(int argc, char **argv)
{
	printf("%u runs this as %u\n", getuid(), geteuid());
	if (geteuid() != 0) {
		return 1;
	}
	int wrong = distrusts("/proc/self/exe", getuid() == 0 ? 0 : S_ISUID);
	for (int number = 1; number < argc; number++) {
		wrong |= distrusts(argv[number], 0);
	}
	if (wrong) {
		return 1;
	}
	int made = open("/made-by-root", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
	if (made < 0) {
		perror("/made-by-root");
		return 1;
	}
	return close(made) != 0;
}
