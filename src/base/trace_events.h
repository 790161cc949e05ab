// SPDX-License-Identifier: Apache-2.0
#pragma once

// The names of all trace events, in two sections. The first carries the kernel's tracepoint names
// with the kernel's meaning (include/trace/events/kvm.h, arch/x86/kvm/trace.h,
// arch/x86/kvm/mmu/mmutrace.h, of secure guests arch/powerpc/kvm/trace_hv.h, of devices
// include/trace/events/iommu.h), so that whoever reads KVM traces reads ours. The second is the
// engine's own; its names begin with st_.
//
// The arguments of an event are up to four words; the comment names them.

// clang-format off
#define ST_KERNEL_EVENTS(X)                                                         \
  X(kvm_userspace_exit)        /* exit_reason, errno */                             \
  X(kvm_vcpu_wakeup)           /* ns, waited, valid */                              \
  X(kvm_set_irq)               /* gsi, level, irq_source_id */                      \
  X(kvm_ioapic_set_irq)        /* entry, pin, coalesced */                          \
  X(kvm_ioapic_delayed_eoi_inj)                                                     \
  X(kvm_msi_set_irq)           /* address, data */                                  \
  X(kvm_ack_irq)               /* irqchip, pin */                                   \
  X(kvm_mmio)                  /* type, len, gpa, value */                          \
  X(kvm_fpu)                   /* load */                                           \
  X(kvm_halt_poll_ns)                                                               \
  X(kvm_dirty_ring_push)       /* index, slot, offset, reset */                     \
  X(kvm_dirty_ring_reset)                                                           \
  X(kvm_dirty_ring_exit)       /* vcpu_id */                                        \
  X(kvm_unmap_hva_range)       /* start, end */                                     \
  X(kvm_age_hva)               /* start, end */                                     \
  X(kvm_test_age_hva)          /* hva */                                            \
  X(kvm_entry)                 /* vcpu_id, rip */                                   \
  X(kvm_exit)                  /* vcpu_id, reason, rip, detail */                   \
  X(kvm_hypercall)             /* nr, a0, a1, a2 */                                 \
  X(kvm_hv_hypercall)                                                               \
  X(kvm_xen_hypercall)                                                              \
  X(kvm_pio)                   /* rw, port, size, count */                          \
  X(kvm_fast_mmio)             /* gpa */                                            \
  X(kvm_cpuid)                 /* function, index, rax, rbx */                      \
  X(kvm_apic)                  /* rw, reg, value */                                 \
  X(kvm_inj_virq)              /* vector, soft, reinjected */                       \
  X(kvm_inj_exception)         /* vector, has_error, error_code, reinjected */      \
  X(kvm_page_fault)            /* vcpu_id, rip, fault_address, error_code */        \
  X(kvm_msr)                   /* write, ecx, data, exception */                    \
  X(kvm_cr)                    /* rw, cr, value */                                  \
  X(kvm_pic_set_irq)                                                                \
  X(kvm_apic_ipi)              /* icr_low, dest_id */                               \
  X(kvm_apic_accept_irq)       /* apic_id, delivery mode, trigger, vector */        \
  X(kvm_eoi)                   /* apic_id, vector */                                \
  X(kvm_pv_eoi)                                                                     \
  X(kvm_emulate_insn)          /* rip, len, bytes, failed */                        \
  X(kvm_write_tsc_offset)      /* vcpu_id, previous, next */                        \
  X(kvm_update_master_clock)                                                        \
  X(kvm_track_tsc)                                                                  \
  X(kvm_pml_full)                                                                   \
  X(kvm_pvclock_update)                                                             \
  X(kvm_wait_lapic_expire)                                                          \
  X(kvm_smm_transition)                                                             \
  X(kvm_apicv_inhibit_changed)                                                      \
  X(kvm_try_async_get_page)    /* gva, gfn */                                       \
  X(kvm_async_pf_not_present)  /* token, gva */                                     \
  X(kvm_async_pf_ready)        /* token, gva */                                     \
  X(kvm_mmu_pagetable_walk)    /* addr, pferr */                                    \
  X(kvm_mmu_paging_element)    /* pte, level */                                     \
  X(kvm_mmu_set_accessed_bit)  /* table_gfn, index, size */                         \
  X(kvm_mmu_set_dirty_bit)     /* table_gfn, index, size */                         \
  X(kvm_mmu_walker_error)      /* pferr */                                          \
  X(kvm_mmu_get_page)                                                               \
  X(kvm_mmu_prepare_zap_page)                                                       \
  X(kvm_mmu_zap_all_fast)                                                           \
  X(mark_mmio_spte)            /* sptep, gfn, access, generation */                 \
  X(handle_mmio_page_fault)    /* addr, gfn, access */                              \
  X(fast_page_fault)           /* cr2_or_gpa, error_code, old_spte, new_spte */     \
  X(check_mmio_spte)           /* spte, kvm_gen, spte_gen */                        \
  X(kvm_mmu_set_spte)          /* gfn, spte, level, sptep */                        \
  X(kvm_mmu_spte_requested)    /* gfn, pfn, level */                                \
  X(kvm_tdp_mmu_spte_changed)  /* gfn, level, old_spte, new_spte */                 \
  X(kvm_mmu_split_huge_page)   /* gfn, spte, level, errno */                        \
  X(vcpu_match_mmio)           /* gva, gpa, write, gpa_match */                     \
  X(kvm_hcall_enter)           /* lpid, req, gpr4, gpr5 */                          \
  X(kvm_hcall_exit)            /* lpid, req, ret */                                 \
  X(io_page_fault)             /* device, pasid, iova, reason */

#define ST_ENGINE_EVENTS(X)                                                         \
  X(st_room)                   /* a request enters a room: step, detail */          \
  X(st_ioctl)                  /* fd kind, request, argument, result */             \
  X(st_fd_open)                /* fd, kind, inode */                                \
  X(st_fd_last_close)          /* kind, inode */                                    \
  X(st_memslot)                /* slot, base gfn, npages, change */                 \
  X(st_attributes)             /* first gfn, last gfn, attributes */                \
  X(st_pinned_private)         /* first gfn, hva of the first page, pages */        \
  X(st_memfd_punch)            /* first page, end */                                \
  X(st_change)                 /* a system call changes hva: kind, start, size */   \
  X(st_invalidate_start)       /* start, end, kind */                               \
  X(st_invalidate_end)         /* start, end, kind */                               \
  X(st_gate_begin)             /* first, last, sequence */                          \
  X(st_gate_end)               /* sequence */                                       \
  X(st_gate_retry)             /* page, snapshot */                                 \
  X(st_ack_request)            /* ticket */                                         \
  X(st_ack)                    /* ticket */                                         \
  X(st_ack_slow)               /* ticket, ns waited, owner tid */                   \
  X(st_ack_owner_dead)         /* ticket, owner tid */                              \
  X(st_zap)                    /* first gfn, last gfn, entries */                   \
  X(st_tlb_fill)               /* gva, gpa, hva, access */                          \
  X(st_tlb_flush)              /* ticket */                                         \
  X(st_faultin)                /* hva, access, errno */                             \
  X(st_fixup)                  /* fault address, pc */                              \
  X(st_owner_ask)              /* object, index */                                  \
  X(st_pin_aside)              /* hva, place, bytes */                              \
  X(st_uv_call)                /* lpid, call, its first argument, answer */         \
  X(st_uv_page)                /* lpid, gpa, state before, state */                 \
  X(st_page_dump)              /* index from 0, hva, pins, state */                 \
  X(st_signal)                 /* signal, in section */                             \
  X(st_block_decoded)          /* pc, instructions */                               \
  X(st_block_dropped)          /* pc */                                             \
  X(st_process)                /* what, pid */

#define ST_ROOMS(X)                                                                     \
  X(base) X(sync) X(addr) X(pt) X(mem) X(host) X(stage2) X(iommu) X(mirror) X(reclaim)  \
  X(vcpu) X(vfio) X(uv) X(abi_kvm) X(abi_vfio) X(abi_iommufd) X(abi_hmm) X(check)       \
  X(shim) X(cli)
// clang-format on
