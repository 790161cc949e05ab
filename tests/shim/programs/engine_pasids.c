// SPDX-License-Identifier: Apache-2.0
// One device and many address spaces: a dma-engine by its own node, with page tables of an iommufd
// attached to PASIDs, as kernels have it from 6.15 on. The same IOVA is other memory for each of
// them; what is detached is not reached, what is put in another's place is, and none sees another.
#define _GNU_SOURCE
#include "vfio_node.h"

enum { kPasidRegister = 0x808, kErrorRegister = 0xc0, kSpaces = 3, kBytes = 16 * kPage };
static const char kType[] =
    "/sys/class/mdev_bus/dma-engine/mdev_supported_types/dma-engine-1/create";
static const char kUuid[] = "9a51d000-825f-3413-9000-00000000aa01";
static const char kFolder[] = "/sys/bus/mdev/devices/9a51d000-825f-3413-9000-00000000aa01";
static const uint64_t kIova = 0x40000000;

static int device;
static struct ring* ring;

// Of each space: a page for the record, what is moved, and where to.
struct space {
  struct dsa_completion_record record;
  char rest[kPage - sizeof(struct dsa_completion_record)];
  char from[kPage], to[kBytes - 2 * kPage];
};
_Static_assert(sizeof(struct space) == kBytes, "whole pages");

static void use(uint32_t pasid) {
  REQUIRE(pwrite(device, &pasid, 4, kPasidRegister) == 4);
}
static uint64_t error_of_device(void) {
  uint64_t words[3] = {0};
  for (unsigned i = 0; i < 3; ++i) {
    REQUIRE(pread(device, (char*)&words[i], 4, kErrorRegister + 8 * i) == 4);
    REQUIRE(pread(device, (char*)&words[i] + 4, 4, kErrorRegister + 8 * i + 4) == 4);
  }
  return (words[0] & 1) != 0 ? words[2] : 0;
}
static void clear_error(void) {
  const uint32_t seen = 1;
  REQUIRE(pwrite(device, &seen, 4, kErrorRegister) == 4);
}

static struct dsa_hw_desc moving(size_t size) {
  struct dsa_hw_desc d =
      descriptor_of(DSA_OPCODE_MEMMOVE, kIova, kIova + kPage, kIova + 2 * kPage, size);
  d.pasid = 77;  // whatever a descriptor says
  return d;
}
// Under the PASID that is set: the text of `space` arrives there, and in no other.
static void moves_in(struct space* const spaces[kSpaces], unsigned number) {
  static unsigned round;
  for (unsigned i = 0; i < kSpaces; ++i) {
    memset(&spaces[i]->record, 0, sizeof spaces[i]->record);
    memset(spaces[i]->to, 0, sizeof spaces[i]->to);
    snprintf(spaces[i]->from, kPage, "round %u of space %u", round, i);
  }
  ++round;
  const struct dsa_hw_desc d = moving(kPage);
  submit_to(device, ring, &d);
  REQUIRE(status_of(&spaces[number]->record) == DSA_COMP_SUCCESS);
  for (unsigned i = 0; i < kSpaces; ++i) {
    const char* const wanted = i == number ? spaces[i]->from : "";
    REQUIRE(strcmp(spaces[i]->to, wanted) == 0);
    REQUIRE((spaces[i]->record.status != 0) == (i == number));
  }
}
// There is no place for the record either: the device says so.
static void reaches_nothing(struct space* const spaces[kSpaces]) {
  for (unsigned i = 0; i < kSpaces; ++i) memset(spaces[i]->to, 0, sizeof spaces[i]->to);
  const struct dsa_hw_desc d = moving(64);
  submit_to(device, ring, &d);
  uint64_t at = 0;
  for (unsigned i = 0; (at = error_of_device()) == 0; ++i) {
    usleep(100);
    REQUIRE(i < 100000);
  }
  REQUIRE(at / kPage == kIova / kPage);
  clear_error();
  for (unsigned i = 0; i < kSpaces; ++i) REQUIRE(spaces[i]->to[0] == '\0');
}

// It is at work when its PASID's table goes, or is another.
static void taken_away_under_moves(struct space* const spaces[kSpaces], const uint32_t* tables) {
  for (unsigned round = 0; round < 50; ++round) {
    REQUIRE(attach_pasid(device, tables[1], 5) == 0);
    use(5);
    memset(spaces[1]->from, 0x11, kPage);
    const struct dsa_hw_desc d = moving(kPage);
    for (unsigned i = 0; i < 64; ++i) submit_to(device, ring, &d);
    const int replaced = round % 2 != 0;
    REQUIRE((replaced ? attach_pasid(device, tables[2], 5) : detach(device, 5)) == 0);
    memset(spaces[1]->to, 0x22, kPage);  // a canary from here on
    memset(&spaces[1]->record, 0, sizeof spaces[1]->record);
    while (__atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) != ring->tail) usleep(50);
    REQUIRE(ioctl(device, VFIO_DEVICE_RESET) == 0);
    for (unsigned i = 0; i < kPage; ++i) REQUIRE(spaces[1]->to[i] == 0x22);
    REQUIRE(spaces[1]->record.status == 0);
    if (replaced) REQUIRE(detach(device, 5) == 0);
  }
}

int main(void) {
  char path[280];
  setvbuf(stdout, NULL, _IOLBF, 0);
  REQUIRE(put(kType, kUuid) == 36);
  device = open_node(kFolder, path);
  const int iommufd = open("/dev/iommu", O_RDWR);
  REQUIRE(device >= 0 && iommufd >= 0);
  struct vfio_device_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = iommufd};
  REQUIRE(ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0);
  ring = ring_of(device);

  struct space* spaces[kSpaces];
  uint32_t tables[kSpaces], ioas = 0;
  for (unsigned i = 0; i < kSpaces; ++i) {
    spaces[i] = memory_of(kBytes);
    ioas = ioas_of(iommufd, spaces[i], kBytes, kIova);
    tables[i] = table_of(iommufd, bind.out_devid, ioas);
  }
  REFUSED(attach_pasid(device, tables[1], 0), EINVAL);
  REFUSED(attach_pasid(device, tables[1], 1 << 12), EINVAL);  // it has 12 bits of them
  REFUSED(attach_pasid(device, tables[1], 1 << 20), EINVAL);
  REFUSED(attach_pasid(device, ioas, 5), EINVAL);  // its table is not one for PASIDs
  struct vfio_device_attach_iommufd_pt_pasid cut = {
      .argsz = 12, .flags = VFIO_DEVICE_ATTACH_PASID, .pt_id = tables[1], .pasid = 5};
  REFUSED(ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cut), EINVAL);
  cut = (struct vfio_device_attach_iommufd_pt_pasid){
      .argsz = sizeof cut, .flags = 2, .pt_id = tables[1], .pasid = 5};
  REFUSED(ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cut), EINVAL);

  use(5);
  reaches_nothing(spaces);
  REQUIRE(attach_pasid(device, tables[1], 5) == 0 && attach_pasid(device, tables[2], 6) == 0);
  moves_in(spaces, 1);
  use(6);
  moves_in(spaces, 2);
  use(0);
  reaches_nothing(spaces);  // there are PASIDs only
  REQUIRE(attach(device, tables[0]) == 0);
  moves_in(spaces, 0);
  use(5);
  moves_in(spaces, 1);
  use(7);
  reaches_nothing(spaces);
  REQUIRE(detach(device, 0) == 0);
  use(6);
  moves_in(spaces, 2);
  use(0);
  reaches_nothing(spaces);
  REQUIRE(attach_pasid(device, tables[0], 6) == 0);  // in the place of the third
  use(6);
  moves_in(spaces, 0);
  use(5);
  moves_in(spaces, 1);
  REFUSED(destroy(iommufd, tables[1]), EBUSY);
  REQUIRE(detach(device, 5) == 0);
  reaches_nothing(spaces);
  REQUIRE(detach(device, 5) == 0 && detach(device, 9) == 0);
  taken_away_under_moves(spaces, tables);
  REQUIRE(destroy(iommufd, tables[1]) == 0);

  // What is still attached goes with the device's last descriptor.
  REFUSED(destroy(iommufd, tables[0]), EBUSY);
  munmap(ring, kRingBytes);
  close(device);
  REQUIRE(destroy(iommufd, tables[0]) == 0);
  close(iommufd);
  snprintf(path, sizeof path, "%s/remove", kFolder);
  REQUIRE(put(path, "1") == 1);
  puts("done");
  return 0;
}
