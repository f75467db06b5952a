package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A VM is a virtual machine. Its methods may be called from any goroutine;
// the kernel serialises them.
type VM struct {
	fd       int
	mmapSize int
	syncable SyncClass // what KVM_CAP_SYNC_REGS offers
}

// Close closes the VM. The kernel frees it once its VCPUs are closed too.
func (m *VM) Close() error {
	if m.fd < 0 {
		return nil
	}
	err := unix.Close(m.fd)
	m.fd = -1
	return err
}

// Check is System.Check asked of this VM, where answers may differ by what
// the VM already has.
func (m *VM) Check(c Cap) int { return check(m.fd, c) }

// EnableCap turns a capability on. It panics on more than the four arguments
// that the ioctl carries.
func (m *VM) EnableCap(c Cap, args ...uint64) error {
	e := enableCap{cap: uint32(c)}
	if len(args) > len(e.args) {
		panic("kvm: EnableCap with more than four arguments")
	}
	copy(e.args[:], args)
	if _, err := ioctlPtr(m.fd, reqEnableCap, &e); err != nil {
		return fmt.Errorf("%w (%v)", err, c)
	}
	return nil
}

// SetTSSAddr gives KVM three pages of guest address space below 4 GiB, from
// addr on, for real mode on Intel. It must not be RAM.
func (m *VM) SetTSSAddr(addr uint32) error {
	_, err := ioctl(m.fd, reqSetTSSAddr, uintptr(addr))
	return err
}

// SetIdentityMapAddr gives KVM one page of guest address space for the same
// purpose. It goes before the first VCPU.
func (m *VM) SetIdentityMapAddr(addr uint64) error {
	_, err := ioctlPtr(m.fd, reqSetIdentityMapAddr, &addr)
	return err
}

// SetMemoryRegion maps size bytes of this process, from hostAddr on, at guest
// physical address gpa. Everything is page aligned; size 0 removes the slot.
// The host memory must stay mapped as long as the slot exists.
func (m *VM) SetMemoryRegion(slot, flags uint32, gpa, size uint64, hostAddr uintptr) error {
	r := region{Slot: slot, Flags: flags, GuestPhysAddr: gpa, MemorySize: size, UserspaceAddr: uint64(hostAddr)}
	if _, err := ioctlPtr(m.fd, reqSetMemoryRegion, &r); err != nil {
		return fmt.Errorf("%w (slot %d, %#x bytes at %#x)", err, slot, size, gpa)
	}
	return nil
}

// GetClock reads kvmclock into c.
func (m *VM) GetClock(c *ClockData) error {
	_, err := ioctlPtr(m.fd, reqGetClock, c)
	return err
}

// SetClock sets kvmclock; Flags may hold ClockRealtime only, which moves the
// clock on by the time since c.Realtime.
func (m *VM) SetClock(c ClockData) error {
	_, err := ioctlPtr(m.fd, reqSetClock, &c)
	return err
}

// CreateVCPU makes the virtual processor with the given local APIC id.
func (m *VM) CreateVCPU(id uint32) (*VCPU, error) {
	fd, err := ioctl(m.fd, reqCreateVCPU, uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("%w (processor %d)", err, id)
	}
	page, err := unix.Mmap(fd, 0, m.mmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("kvm: run page of processor %d: mmap: %w", id, err)
	}
	v := newVCPU(id, fd, page, m.syncable)
	if err := v.setSignalMask(runMask); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// Limits of KVM_X86_SET_MSR_FILTER, asm/kvm.h.
const (
	maxMSRRanges = 16
	maxMSRBitmap = 0x600 // bytes; one bit for each MSR of a range
)

// MSRDeny says which accesses of an MSRRange are denied.
type MSRDeny uint32

// Kinds of access, KVM_MSR_FILTER_READ and _WRITE.
const (
	DenyRead  MSRDeny = 1 << 0
	DenyWrite MSRDeny = 1 << 1
)

// An MSRRange is Count MSRs from Base on, at most 12288 of them.
type MSRRange struct {
	Base  uint32
	Count uint32
	Deny  MSRDeny
}

// Why an MSR access exits, bits of the argument that EnableCap takes with
// CapX86UserSpaceMSR, and of MSRExit.Reason.
const (
	MSRReasonInvalid MSRReason = 1 << 0 // KVM would raise #GP for the value
	MSRReasonUnknown MSRReason = 1 << 1 // KVM does not know the MSR
	MSRReasonFilter  MSRReason = 1 << 2 // the filter denies it
)

// SetMSRFilter denies the given ranges, at most 16, and allows all other MSRs.
// A denied access raises #GP in the guest, or exits when CapX86UserSpaceMSR is
// enabled with MSRReasonFilter. The call replaces the former filter; without
// ranges it removes it. The x2APIC MSRs (0x800-0x8FF) cannot be denied.
func (m *VM) SetMSRFilter(ranges ...MSRRange) error {
	if len(ranges) > maxMSRRanges {
		return fmt.Errorf("kvm: %s: %d ranges, the kernel takes %d", reqSetMSRFilter.name, len(ranges), maxMSRRanges)
	}
	var f msrFilter
	for i, r := range ranges {
		if r.Count == 0 || r.Count > maxMSRBitmap*8 || uint64(r.Base)+uint64(r.Count) > 1<<32 || r.Deny == 0 || r.Deny&^(DenyRead|DenyWrite) != 0 {
			return fmt.Errorf("kvm: %s: bad range of %d MSRs from %#x (deny %#x)", reqSetMSRFilter.name, r.Count, r.Base, uint32(r.Deny))
		}
		f.ranges[i] = msrFilterRange{flags: uint32(r.Deny), nmsrs: r.Count, base: r.Base}
		f.ranges[i].deny()
	}
	_, err := ioctlPtr(m.fd, reqSetMSRFilter, &f)
	return err
}
