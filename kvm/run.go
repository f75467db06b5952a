package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// How a kick travels.
//
// Kick sets a flag and immediate_exit in the run page, then, if the owner is inside
// KVM_RUN, sends kickSignal to its thread. The owner announces KVM_RUN before
// the kernel reads immediate_exit, and both sides use locked instructions, so
// one of the two sees the other: no kick falls between.
//
// kickSignal is blocked in the thread; only the mask that KVM_RUN puts in its
// place opens it. The signal therefore never runs a handler: KVM_RUN returns
// EINTR with it pending, and the owner takes it off. One that comes later, when
// KVM_RUN has already returned for another reason, waits on the thread, and
// the next KVM_RUN ends at once, as it must: immediate_exit is still set.
//
// The flag tells a kick from the immediate_exit of CompleteExit. Kick sets the
// flag first and the owner clears it last, so a kick may cost one needless
// return of KVM_RUN, which Run hides, but is never lost.

// kickSignal is a standard signal, not a real-time one: those queue, each in a
// slot of a limit that all processes of a user share, so sending one can fail.
// The Go runtime ignores a SIGIO that nobody asked for, and nothing here uses
// asynchronous I/O.
const kickSignal = unix.SIGIO

// runMask is the signal mask of the thread inside KVM_RUN. It opens, besides
// kickSignal, the signals that the runtime never blocks because it or a C
// library sends them to one thread and waits (syscall.AllThreadsSyscall, for
// one, would hang on a processor that halts). They end KVM_RUN without
// immediate_exit, and Run enters again.
const runMask = ^uint64(1<<(kickSignal-1) | 1<<(32-1) | 1<<(33-1) | 1<<(34-1))

// kickSet holds kickSignal alone.
const kickSet = uint64(1 << (kickSignal - 1))

// States of VCPU.state. Only the owner leaves and enters stateIdle; a Kick
// turns stateRunning into stateKicked, so that one signal is sent for each
// KVM_RUN however many kick.
const (
	stateIdle    = 0
	stateRunning = 1
	stateKicked  = 2
)

// Bits of the first word of the run page: two bytes of the kernel's, changed
// with atomic instructions because Kick comes from other threads.
const (
	offControl          = 0
	bitRequestIRQWindow = 1 << 0
	bitImmediateExit    = 1 << 8
)

// setSignalMask sets the mask of KVM_RUN.
func (v *VCPU) setSignalMask(mask uint64) error {
	var b [sizeSigMask + 8]byte
	binary.LittleEndian.PutUint32(b[:], 8) // bytes of the kernel's sigset_t
	binary.LittleEndian.PutUint64(b[sizeSigMask:], mask)
	_, err := ioctlBuf(v.fd, reqSetSignalMask, b[:])
	return err
}

// LockThread makes the calling goroutine the owner of the processor: it wires
// the goroutine to its thread, as runtime.LockOSThread does, and blocks the
// kick signal there. Every Run needs it.
func (v *VCPU) LockThread() error {
	runtime.LockOSThread()
	var set unix.Sigset_t
	set.Val[0] = kickSet
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tid != 0 {
		panic("kvm: LockThread of a processor that has a thread")
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &v.savedMask); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("kvm: block the kick signal: rt_sigprocmask: %w", err)
	}
	v.tid = unix.Gettid()
	return nil
}

// UnlockThread undoes LockThread, on the same goroutine. A Kick that nobody
// has taken stays for the next owner.
func (v *VCPU) UnlockThread() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tid == 0 {
		panic("kvm: UnlockThread without LockThread")
	}
	v.tid = 0
	// Kick sends its signal under mu, so none is on its way any more.
	v.drainKick()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &v.savedMask, nil); err != nil {
		// The goroutine stays locked, so the thread ends with it.
		return fmt.Errorf("kvm: restore the signal mask: rt_sigprocmask: %w", err)
	}
	runtime.UnlockOSThread()
	return nil
}

// drainKick takes kickSignal off the calling thread, if it is pending.
func (v *VCPU) drainKick() { sigtimedwait(kickSet) }

// Kick makes the present or the next Run return ErrKicked. Any goroutine may
// call it at any time, even after Close, when it does nothing. Kicks that the
// owner has not taken yet count as one; what was written before a Kick is
// visible after the ErrKicked that takes it.
func (v *VCPU) Kick() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return
	}
	v.kicked.Store(true)
	atomic.OrUint32(v.control, bitImmediateExit)
	if v.state.CompareAndSwap(stateRunning, stateKicked) {
		// The owner is inside KVM_RUN or on its way there or back, so the
		// thread exists.
		if err := unix.Tgkill(unix.Getpid(), v.tid, kickSignal); err != nil {
			panic(fmt.Sprintf("kvm: tgkill of thread %d: %v", v.tid, err))
		}
	}
}

// Run runs the guest until something for the owner happens. The Exit and all
// that it refers to are valid until the next call. Run completes what the
// former exit began (the data of a read, say), even when it then returns
// ErrKicked.
//
// Any other error means that the host cannot go on with this processor.
func (v *VCPU) Run() (*Exit, error) {
	if v.tid == 0 {
		panic("kvm: Run without LockThread")
	}
	for {
		switch errno := v.enter(); errno {
		case 0:
			if err := v.exit.decode(); err != nil {
				return nil, err
			}
			return &v.exit, nil
		case unix.EINTR:
			if v.kicked.Swap(false) {
				return nil, ErrKicked
			}
			// A stop and continue, a signal of the runtime, or the rest of
			// a kick that is already taken.
		case unix.EAGAIN:
			// The processor waited for its SIPI and was woken.
		default:
			return nil, v.runError(errno)
		}
	}
}

// enter is one KVM_RUN. If a signal or immediate_exit ended it, both are
// cleared.
func (v *VCPU) enter() unix.Errno {
	v.state.Store(stateRunning)
	errno := enter(v.fd)
	v.state.Store(stateIdle)
	v.exited = errno == 0
	if errno == unix.EINTR {
		v.drainKick()
		atomic.AndUint32(v.control, ^uint32(bitImmediateExit))
	}
	return errno
}

// maxCompletions bounds the accesses of one instruction: a string instruction
// that KVM emulates may go on with the next page of data port accesses.
const maxCompletions = 64

// CompleteExit makes KVM finish what the last exit began, without running the
// guest: the registers then are those after the instruction. Whoever sets RIP
// anew after an exit needs it: KVM completes an exit at the next Run, and
// moves RIP past an in or out if RIP looks the same. Without an exit to
// complete it does nothing. It takes no kick.
func (v *VCPU) CompleteExit() error {
	for range maxCompletions {
		if !v.exited {
			return nil
		}
		if v.tid == 0 {
			panic("kvm: CompleteExit without LockThread")
		}
		atomic.OrUint32(v.control, bitImmediateExit)
		errno := v.enter()
		if v.kicked.Load() {
			atomic.OrUint32(v.control, bitImmediateExit)
		}
		if errno != 0 && errno != unix.EINTR {
			return v.runError(errno)
		}
	}
	return fmt.Errorf("kvm: processor %d: exit not complete after %d entries", v.id, maxCompletions)
}

// runError adds what the kernel says about a guest access that it could not
// resolve (KVM_CAP_MEMORY_FAULT_INFO).
func (v *VCPU) runError(errno unix.Errno) error {
	err := fmt.Errorf("processor %d: %w", v.id, reqRun.fail(errno))
	if (errno == unix.EFAULT || errno == unix.EHWPOISON) && v.exit.decode() == nil && v.exit.Reason == ExitMemoryFault {
		return fmt.Errorf("%w (guest address %#x, %d bytes)", err, v.exit.MemoryFault.GPA, v.exit.MemoryFault.Size)
	}
	return err
}

// A SyncClass is a set of register classes that travel in the run page.
type SyncClass uint64

// Classes of KVM_CAP_SYNC_REGS on x86.
const (
	SyncRegs   SyncClass = 1 << 0
	SyncSregs  SyncClass = 1 << 1
	SyncEvents SyncClass = 1 << 2
)

// errNoSync reports a kernel older than 4.18.
var errNoSync = errors.New("kvm: KVM_CAP_SYNC_REGS lacks a register class that is needed: update the host kernel")

// EnableSync makes every Run leave the registers of the given classes in the
// run page.
func (v *VCPU) EnableSync(c SyncClass) error {
	if c&^v.syncable != 0 {
		return fmt.Errorf("%w (asked for %#x, has %#x)", errNoSync, c, v.syncable)
	}
	binary.LittleEndian.PutUint64(v.page[offValidRegs:], uint64(c))
	return nil
}

// SyncRegs returns the general registers in the run page. With SyncRegs
// enabled they are the guest's after each Run, ErrKicked included; changes go
// to the guest at the next Run if MarkDirty says so.
func (v *VCPU) SyncRegs() *Regs { return overlay[Regs](v.page, offSyncRegs) }

// SyncSregs returns the segment and control registers in the run page, as
// SyncRegs does.
func (v *VCPU) SyncSregs() *Sregs { return overlay[Sregs](v.page, offSyncSregs) }

// SyncEvents returns the pending events in the run page, as SyncRegs does.
func (v *VCPU) SyncEvents() *VCPUEvents { return overlay[VCPUEvents](v.page, offSyncEvents) }

// MarkDirty makes the next Run take the registers of the given classes from
// the run page before anything else. The processor must not be waiting for
// its first SIPI: KVM then answers a kick before it looks at the page.
func (v *VCPU) MarkDirty(c SyncClass) {
	p := v.page[offDirtyRegs:]
	binary.LittleEndian.PutUint64(p, binary.LittleEndian.Uint64(p)|uint64(c))
}

// Dirty returns the classes that MarkDirty named since the last Run.
func (v *VCPU) Dirty() SyncClass {
	return SyncClass(binary.LittleEndian.Uint64(v.page[offDirtyRegs:]))
}

// IFFlag returns the guest's interrupt flag as of the last exit.
func (v *VCPU) IFFlag() bool { return v.page[offIFFlag] != 0 }

// ReadyForInjection reports whether Interrupt would be taken, as of the last
// exit.
func (v *VCPU) ReadyForInjection() bool { return v.page[offReadyForInjection] != 0 }

// CR8 returns the guest's task priority as of the last exit.
func (v *VCPU) CR8() uint64 { return binary.LittleEndian.Uint64(v.page[offCR8:]) }

// APICBase returns the guest's IA32_APIC_BASE as of the last exit.
func (v *VCPU) APICBase() uint64 { return binary.LittleEndian.Uint64(v.page[offAPICBase:]) }

// RequestInterruptWindow asks for ExitIRQWindowOpen as soon as the guest can
// take an interrupt. With the in-kernel chips KVM honours it only while LVT0
// accepts ExtINT.
func (v *VCPU) RequestInterruptWindow(on bool) {
	if on {
		atomic.OrUint32(v.control, bitRequestIRQWindow)
	} else {
		atomic.AndUint32(v.control, ^uint32(bitRequestIRQWindow))
	}
}
