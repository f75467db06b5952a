package kvm

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A VCPU is a virtual processor. See the package comment for which goroutine
// may call what.
type VCPU struct {
	id       uint32
	fd       int
	page     []byte // the run area, shared with the kernel
	control  *uint32
	syncable SyncClass
	exit     Exit
	exited   bool // the last KVM_RUN ended with an exit

	// Kick's side of the bargain, see run.go.
	state  atomic.Uint32
	kicked atomic.Bool
	mu     sync.Mutex
	tid    int // of the locked thread, 0 without one
	closed bool

	savedMask unix.Sigset_t // of the thread before LockThread
}

func newVCPU(id uint32, fd int, page []byte, syncable SyncClass) *VCPU {
	return &VCPU{id: id, fd: fd, page: page, control: pageWord(page, offControl), syncable: syncable, exit: Exit{page: page}}
}

// ID returns the number that CreateVCPU was called with.
func (v *VCPU) ID() uint32 { return v.id }

// Close frees the processor. Its goroutine must have left Run; late Kicks do
// nothing. Exits of this VCPU and pointers into its run page die with it.
func (v *VCPU) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil
	}
	v.closed = true
	err := unix.Munmap(v.page)
	if e := unix.Close(v.fd); err == nil {
		err = e
	}
	v.fd = -1
	if err != nil {
		return fmt.Errorf("kvm: close of processor %d: %w", v.id, err)
	}
	return nil
}

// Regs reads the general registers.
func (v *VCPU) Regs() (r Regs, err error) {
	_, err = ioctlPtr(v.fd, reqGetRegs, &r)
	return r, err
}

// SetRegs writes the general registers.
func (v *VCPU) SetRegs(r *Regs) error {
	_, err := ioctlPtr(v.fd, reqSetRegs, r)
	return err
}

// Sregs reads the segment and control registers.
func (v *VCPU) Sregs() (s Sregs, err error) {
	_, err = ioctlPtr(v.fd, reqGetSregs, &s)
	return s, err
}

// SetSregs writes the segment and control registers.
func (v *VCPU) SetSregs(s *Sregs) error {
	_, err := ioctlPtr(v.fd, reqSetSregs, s)
	return err
}

// FPU reads the legacy floating-point state.
func (v *VCPU) FPU() (f FPU, err error) {
	_, err = ioctlPtr(v.fd, reqGetFPU, &f)
	return f, err
}

// SetFPU writes the legacy floating-point state.
func (v *VCPU) SetFPU(f *FPU) error {
	_, err := ioctlPtr(v.fd, reqSetFPU, f)
	return err
}

// GetXSave fills x with the XSAVE state.
func (v *VCPU) GetXSave(x *XSave) error {
	_, err := ioctlPtr(v.fd, reqGetXSave, x)
	return err
}

// SetXSave writes the XSAVE state.
func (v *VCPU) SetXSave(x *XSave) error {
	_, err := ioctlPtr(v.fd, reqSetXSave, x)
	return err
}

// XCRS reads the extended control registers.
func (v *VCPU) XCRS() (x XCRS, err error) {
	_, err = ioctlPtr(v.fd, reqGetXCRS, &x)
	return x, err
}

// SetXCRS writes the extended control registers.
func (v *VCPU) SetXCRS(x *XCRS) error {
	_, err := ioctlPtr(v.fd, reqSetXCRS, x)
	return err
}

// DebugRegs reads the guest's own debug registers.
func (v *VCPU) DebugRegs() (d DebugRegs, err error) {
	_, err = ioctlPtr(v.fd, reqGetDebugRegs, &d)
	return d, err
}

// SetDebugRegs writes the guest's own debug registers.
func (v *VCPU) SetDebugRegs(d *DebugRegs) error {
	_, err := ioctlPtr(v.fd, reqSetDebugRegs, d)
	return err
}

// SetGuestDebug lets the host debug the guest: single steps and breakpoints
// end a run with ExitDebug. The zero GuestDebug ends it.
func (v *VCPU) SetGuestDebug(d *GuestDebug) error {
	_, err := ioctlPtr(v.fd, reqSetGuestDebug, d)
	return err
}

// Events reads pending and injected exceptions, interrupts, NMIs and SMIs.
func (v *VCPU) Events() (e VCPUEvents, err error) {
	_, err = ioctlPtr(v.fd, reqGetEvents, &e)
	return e, err
}

// SetEvents writes them; e.Flags says which of the optional fields count.
func (v *VCPU) SetEvents(e *VCPUEvents) error {
	_, err := ioctlPtr(v.fd, reqSetEvents, e)
	return err
}

// MPState reads whether the processor runs, halts or waits for a SIPI. It
// needs the in-kernel interrupt chip.
func (v *VCPU) MPState() (MPState, error) {
	var s uint32
	_, err := ioctlPtr(v.fd, reqGetMPState, &s)
	return MPState(s), err
}

// SetMPState sets it.
func (v *VCPU) SetMPState(s MPState) error {
	n := uint32(s)
	if _, err := ioctlPtr(v.fd, reqSetMPState, &n); err != nil {
		return fmt.Errorf("%w (%v)", err, s)
	}
	return nil
}

// GetLAPIC fills l with the registers of the in-kernel local APIC.
func (v *VCPU) GetLAPIC(l *LAPICState) error {
	_, err := ioctlPtr(v.fd, reqGetLAPIC, l)
	return err
}

// SetLAPIC writes the registers of the in-kernel local APIC.
func (v *VCPU) SetLAPIC(l *LAPICState) error {
	_, err := ioctlPtr(v.fd, reqSetLAPIC, l)
	return err
}

// Interrupt queues an external interrupt; only without the in-kernel
// interrupt chip, and when ReadyForInjection says so.
func (v *VCPU) Interrupt(vector uint8) error {
	n := uint32(vector)
	_, err := ioctlPtr(v.fd, reqInterrupt, &n)
	return err
}

// NMI queues a non-maskable interrupt.
func (v *VCPU) NMI() error {
	_, err := ioctl(v.fd, reqNMI, 0)
	return err
}

// TSCKHz returns the frequency of the guest's time-stamp counter in kHz.
func (v *VCPU) TSCKHz() (uint32, error) {
	n, err := ioctl(v.fd, reqGetTSCKHz, 0)
	return uint32(n), err
}

// SetTSCKHz sets it; far from the host's own it needs CapTSCControl.
func (v *VCPU) SetTSCKHz(khz uint32) error {
	_, err := ioctl(v.fd, reqSetTSCKHz, uintptr(khz))
	return err
}

// KVMClockCtrl tells a guest that uses kvmclock that it was paused, so that
// its watchdogs stay quiet. EINVAL says that it does not use it.
func (v *VCPU) KVMClockCtrl() error {
	_, err := ioctl(v.fd, reqKVMClockCtrl, 0)
	return err
}

// Translate walks the guest's page tables for a linear address. mapped is
// false if they do not map it.
func (v *VCPU) Translate(gva uint64) (gpa uint64, mapped bool, err error) {
	t := translation{LinearAddress: gva}
	_, err = ioctlPtr(v.fd, reqTranslate, &t)
	return t.PhysicalAddress, err == nil && t.Valid != 0, err
}

// SetCPUID sets the CPUID leaves that the guest sees. It goes before the
// first Run.
func (v *VCPU) SetCPUID(es []CPUIDEntry) error {
	if _, err := ioctlBuf(v.fd, reqSetCPUID, encodeCPUID(es)); err != nil {
		return fmt.Errorf("%w (%d leaves)", err, len(es))
	}
	return nil
}

// CPUID returns the leaves as KVM keeps them.
func (v *VCPU) CPUID() ([]CPUIDEntry, error) { return getCPUID(v.fd, reqGetCPUID) }

// maxMSRs is the most that one request may hold: the kernel wants less than
// MAX_IO_MSRS, 256.
const maxMSRs = 255

const msrEntrySize = 16

// MSRs reads the MSRs that the entries name into their Data. The error names
// the first one that KVM refuses.
func (v *VCPU) MSRs(es []MSREntry) error { return v.msrs(reqGetMSRs, es) }

// SetMSRs writes the MSRs in order. The error names the first one that KVM
// refuses; those before it are written.
func (v *VCPU) SetMSRs(es []MSREntry) error { return v.msrs(reqSetMSRs, es) }

// MSR reads one MSR.
func (v *VCPU) MSR(index uint32) (uint64, error) {
	e := [1]MSREntry{{Index: index}}
	err := v.MSRs(e[:])
	return e[0].Data, err
}

// SetMSR writes one MSR.
func (v *VCPU) SetMSR(index uint32, val uint64) error {
	return v.SetMSRs([]MSREntry{{Index: index, Data: val}})
}

func (v *VCPU) msrs(r request, es []MSREntry) error {
	le := binary.LittleEndian
	for len(es) > 0 {
		part := es[:min(len(es), maxMSRs)]
		b := make([]byte, sizeMSRs+len(part)*msrEntrySize)
		le.PutUint32(b, uint32(len(part)))
		for i, e := range part {
			le.PutUint32(b[sizeMSRs+i*msrEntrySize:], e.Index)
			le.PutUint64(b[sizeMSRs+i*msrEntrySize+8:], e.Data)
		}
		n, err := ioctlBuf(v.fd, r, b)
		if err != nil {
			return err
		}
		for i := range min(n, len(part)) {
			part[i].Data = le.Uint64(b[sizeMSRs+i*msrEntrySize+8:])
		}
		if n < len(part) {
			return fmt.Errorf("kvm: %s: MSR %#x refused", r.name, part[n].Index)
		}
		es = es[len(part):]
	}
	return nil
}
