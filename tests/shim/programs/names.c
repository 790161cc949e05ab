// SPDX-License-Identifier: Apache-2.0
// What the session shows of sysfs and /dev/vfio, by the functions of libc that take names and open
// inside of themselves. What they tell is what was asked for.
#define _GNU_SOURCE
#include <dirent.h>
#include <fts.h>
#include <ftw.h>
#include <glob.h>
#include <linux/magic.h>
#include <spawn.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "vfio_client.h"

#define TYPE "/sys/class/mdev_bus/serial/mdev_supported_types/serial-1"
#define DEVICE "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
#define BUS "/sys/bus/mdev/devices"

static unsigned folders, files, links, after, nodes;
static int answer_at_type, answer;

static void count(const char* path, const struct stat* said, int kind) {
  REQUIRE(strncmp(path, "/sys/", 5) == 0 || strncmp(path, "/dev/vfio", 9) == 0);
  folders += kind == FTW_D;
  after += kind == FTW_DP;
  files += kind == FTW_F;
  links += kind == FTW_SL;
  nodes += S_ISCHR(said->st_mode);
}
static int step(const char* path, const struct stat* said, int kind, struct FTW* where) {
  count(path, said, kind);
  const char* const last = strrchr(path, '/') + 1;
  REQUIRE(path + where->base == last);
  struct stat here;
  if (answer_at_type == 0) REQUIRE(lstat(path, &here) == 0);
  return answer_at_type != 0 && strncmp(last, "serial-", 7) == 0 ? answer_at_type : answer;
}
static int step_inside(const char* path, const struct stat* said, int kind, struct FTW* where) {
  struct stat here;
  REQUIRE(lstat(path + where->base, &here) == 0 && here.st_ino == said->st_ino);
  return step(path, said, kind, where);
}
static int old_step(const char* path, const struct stat* said, int kind) {
  count(path, said, kind);
  return 0;
}
static void start(void) {
  folders = files = links = after = nodes = 0;
}

static void trees(void) {
  start();
  REQUIRE(nftw("/sys/devices/virtual/serial/serial/" DEVICE "/", step, 4, FTW_PHYS) == 0 &&
          links >= 3 && files >= 2);
  const unsigned there = folders;
  start();
  REQUIRE(nftw64("/sys/devices/virtual/serial/serial/" DEVICE "/", (void*)step, 4,
                 FTW_PHYS | FTW_DEPTH) == 0);
  REQUIRE(after == there && folders == 0);
  start();
  const int before = open(".", O_RDONLY);
  REQUIRE(nftw(TYPE, step_inside, 4, FTW_PHYS | FTW_CHDIR) == 0 && files == 4 && folders == 2);
  struct stat was, is;
  REQUIRE(fstat(before, &was) == 0 && stat(".", &is) == 0 && was.st_ino == is.st_ino);
  start();  // links are followed, and every folder is walked once
  REQUIRE(ftw("/sys/class/mdev_bus", old_step, 4) == 0 && folders > there && links == 0);
  start();
  REQUIRE(nftw("/dev/vfio", step, 4, FTW_PHYS) == 0 && folders == 2 && nodes == 3 && files == 3);
  start();
  REQUIRE(nftw("/dev/vfio/0", step, 4, FTW_PHYS) == 0 && nodes == 1);
  // The answers of a step.
  const char* const types = "/sys/devices/virtual/serial/serial/mdev_supported_types";
  start();
  answer_at_type = FTW_SKIP_SUBTREE;
  REQUIRE(nftw(types, step, 4, FTW_PHYS | FTW_ACTIONRETVAL) == 0 && folders == 3 && files == 0);
  start();
  answer_at_type = FTW_SKIP_SIBLINGS;
  REQUIRE(nftw(types, step, 4, FTW_PHYS | FTW_ACTIONRETVAL) == 0 && folders == 2 && files == 0);
  start();
  answer_at_type = 7;
  REQUIRE(nftw(types, step, 4, FTW_PHYS) == 7 && folders == 2);
  answer_at_type = 0;
  REFUSED(nftw("/sys/class/mdev_bus/none", step, 4, 0), ENOENT);
}

static void old_trees(int options) {
  char* const roots[] = {(char*)TYPE, (char*)"/dev/vfio", (char*)"/proc/self/task", NULL};
  FTS* const walk = fts_open(roots, options, NULL);
  REQUIRE(walk != NULL);
  unsigned in_type = 0, in_nodes = 0, elsewhere = 0;
  for (FTSENT* e; (e = fts_read(walk)) != NULL;) {
    REQUIRE(e->fts_pathlen == strlen(e->fts_path));
    struct stat said;
    if (e->fts_info != FTS_DP && strncmp(e->fts_path, "/proc/", 6) != 0) {
      REQUIRE(lstat(e->fts_path, &said) == 0 && said.st_mode == e->fts_statp->st_mode);
      REQUIRE((e->fts_info == FTS_DEFAULT) == (S_ISCHR(said.st_mode) != 0));
    }
    in_type += strncmp(e->fts_path, TYPE, strlen(TYPE)) == 0;
    in_nodes += strncmp(e->fts_path, "/dev/vfio", 9) == 0;
    elsewhere += strcmp(e->fts_path, "/proc/self/task") == 0;
    if (strcmp(e->fts_path, "/proc/self/task") == 0) fts_set(walk, e, FTS_SKIP);
    unsigned children = 0;
    if (e->fts_info == FTS_D && strcmp(e->fts_path, TYPE) == 0) {
      for (FTSENT* c = fts_children(walk, 0); c != NULL; c = c->fts_link) children++;
      REQUIRE(children == 5 && strncmp(e->fts_path, TYPE, e->fts_pathlen) == 0);
    }
  }
  REQUIRE(fts_close(walk) == 0);
  // Folders are told twice: a link, four files and two of them; three nodes and two.
  REQUIRE(in_type == 4 + 1 + 4 && in_nodes == 3 + 4 && elsewhere >= 1);
}

static int clients_calls;
static void* clients_open(const char* path) {
  clients_calls++;
  return opendir(path);
}
static void globs(void) {
  glob_t found = {0};
  REQUIRE(glob("/sys/class/mdev_bus/*/mdev_supported_types/serial-[12]/name", 0, NULL, &found) ==
          0);
  REQUIRE(found.gl_pathc == 2 && strcmp(found.gl_pathv[0], TYPE "/name") == 0);
  REQUIRE((found.gl_flags & GLOB_ALTDIRFUNC) == 0);
  REQUIRE(glob("/dev/vfio/[0-9]*", GLOB_APPEND | GLOB_MARK, NULL, &found) == 0);
  REQUIRE(found.gl_pathc == 3 && strcmp(found.gl_pathv[2], "/dev/vfio/0") == 0);
  REQUIRE(glob64("/dev/vfio/{vfio,devices}", GLOB_BRACE | GLOB_MARK, NULL, (void*)&found) == 0);
  REQUIRE(found.gl_pathc == 2 && strcmp(found.gl_pathv[1], "/dev/vfio/devices/") == 0);
  globfree(&found);
  REQUIRE(glob("/sys/class/mdev_bus/none*", 0, NULL, &found) == GLOB_NOMATCH);
  found.gl_opendir = clients_open;
  found.gl_readdir = (void*)readdir;
  found.gl_closedir = (void*)closedir;
  found.gl_stat = (void*)stat;
  found.gl_lstat = (void*)lstat;
  REQUIRE(glob(BUS "/*", GLOB_ALTDIRFUNC, NULL, &found) == 0 && clients_calls > 0);
  REQUIRE(found.gl_pathc == 1 && found.gl_opendir == clients_open);
  globfree(&found);
  struct dirent** list = NULL;
  REQUIRE(scandir(BUS, &list, NULL, alphasort) == 3 && strcmp(list[2]->d_name, DEVICE) == 0);
  REQUIRE(scandirat(AT_FDCWD, "/dev/vfio", &list, NULL, alphasort) == 5);
}

static void streams(void) {
  char line[99] = "";
  REQUIRE(freopen(TYPE "/name", "r", stdin) == stdin && fgets(line, sizeof line, stdin) != NULL);
  REQUIRE(strcmp(line, "Single port serial\n") == 0);
  REQUIRE(freopen("/sys/module/kvm/parameters/nx_huge_pages", "r", stdin) == stdin);
  REQUIRE(fgets(line, sizeof line, stdin) != NULL && strcmp(line, "N\n") == 0);
  FILE* const file = fopen("/dev/null", "w");
  REQUIRE(freopen(BUS "/" DEVICE "/remove", "w", file) == file);
  REQUIRE(fputs("x", file) > 0 && fflush(file) == EOF && errno == EINVAL);
  REQUIRE(freopen(TYPE "/create", "r", file) == NULL && errno == EACCES);
  FILE* const other = fopen("/dev/null", "w");
  REQUIRE(freopen("/dev/vfio/vfio", "r+", other) == other);
  REQUIRE(ioctl(fileno(other), VFIO_GET_API_VERSION) == VFIO_API_VERSION);
  REQUIRE(fclose(other) == 0);
}

static void places(void) {
  struct statfs said;
  struct statvfs more;
  REQUIRE(statfs(BUS, &said) == 0 && said.f_type == SYSFS_MAGIC);
  struct statfs dev;
  REQUIRE(statfs("/dev", &dev) == 0 && statfs("/dev/vfio/0", &said) == 0);
  REQUIRE(said.f_type == dev.f_type && statvfs("/dev/vfio", &more) == 0);
  REFUSED(statfs(BUS "/none", &said), ENOENT);
  REQUIRE(pathconf("/dev/vfio/0", _PC_NAME_MAX) == 255 && pathconf(BUS, _PC_NAME_MAX) == 255);
  REQUIRE(truncate(BUS "/" DEVICE "/remove", 0) == 0);
  REFUSED(truncate(BUS, 0), EISDIR);

  const int watch = inotify_init1(IN_NONBLOCK);
  REQUIRE(inotify_add_watch(watch, BUS, IN_CREATE) > 0);
  REQUIRE(inotify_add_watch(watch, "/dev/vfio/0", IN_ATTRIB) > 0);
  REQUIRE(put(TYPE "/create", "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002") == 36);
  char events[512];
  REQUIRE(read(watch, events, sizeof events) > 0);

  char* words[] = {(char*)"grep", (char*)"-q", (char*)"^Single port serial$", NULL};
  posix_spawn_file_actions_t steps;
  posix_spawn_file_actions_init(&steps);
  posix_spawn_file_actions_addopen(&steps, 0, TYPE "/name", O_RDONLY, 0);
  pid_t child;
  int status = -1;
  REQUIRE(posix_spawnp(&child, "grep", &steps, NULL, words, environ) == 0);
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
  char* in_folder[] = {(char*)"grep", (char*)"-q", (char*)"^Single port serial$", (char*)"name",
                       NULL};
  posix_spawn_file_actions_init(&steps);
  posix_spawn_file_actions_addchdir_np(&steps, TYPE);
  REQUIRE(posix_spawnp(&child, "grep", &steps, NULL, in_folder, environ) == 0);
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
  posix_spawn_file_actions_init(&steps);
  posix_spawn_file_actions_addopen(&steps, 1, TYPE "/create", O_WRONLY, 0);
  REQUIRE(posix_spawnp(&child, "true", &steps, NULL, words, environ) != 0);
}

// Nothing is made on the machine that nobody would see, and what is shown stands.
static void changes(void) {
  const int no = geteuid() == 0 ? EPERM : EACCES;
  REFUSED(mkdir("/dev/vfio", 0755), EEXIST);
  REFUSED(mkdir("/dev//./vfio/", 0755), EEXIST);
  REFUSED(mknod("/dev/vfio/0", S_IFCHR | 0600, makedev(511, 0)), EEXIST);
  REFUSED(mknod("/dev/vfio/9", S_IFCHR | 0600, makedev(511, 9)), no);
  REFUSED(symlink("x", "/dev/vfio/devices/x"), no);
  REFUSED(mkdir("/dev/vfio/none/x", 0755), ENOENT);
  REFUSED(open("/dev/vfio/9", O_CREAT | O_RDWR, 0600), EACCES);
  REFUSED(open("/dev/vfio/0", O_CREAT | O_EXCL | O_RDWR, 0600), EEXIST);
  REFUSED(unlink("/dev/vfio/0"), no);
  REFUSED(unlink("/dev/vfio/9"), ENOENT);
  REFUSED(unlink("/dev/vfio"), EISDIR);
  REFUSED(rmdir("/dev/vfio/0"), ENOTDIR);
  REFUSED(rename("/dev/vfio/0", "/dev/vfio/9"), no);
  REFUSED(rename("/tmp", "/dev/vfio/9"), EXDEV);
  REFUSED(link("/dev/vfio/0", "/dev/vfio/vfio"), EEXIST);
  REFUSED(mknod("/dev/iommu", S_IFCHR | 0600, makedev(10, 1)), EEXIST);
  REFUSED(unlink("/dev/iommu"), no);
  REQUIRE(chdir("/dev") == 0);
  REFUSED(mkdir("vfio", 0755), EEXIST);
  REQUIRE(chdir("/dev/vfio") == 0);
  REFUSED(unlink("0"), no);
  REFUSED(mkdir("x", 0755), no);
  const int group = open("0", O_RDWR);
  REQUIRE(group >= 0 && close(group) == 0 && chdir("/") == 0);
}

int main(void) {
  REQUIRE(put(TYPE "/create", DEVICE) == 36);
  trees();
  old_trees(FTS_PHYSICAL);
  old_trees(FTS_PHYSICAL | FTS_NOCHDIR);
  globs();
  streams();
  changes();
  places();
  puts("done");
  return 0;
}
