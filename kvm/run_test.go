package kvm

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fabricated is a VCPU over a page that no kernel fills.
func fabricated(p page) *VCPU {
	v := newVCPU(3, -1, p, SyncRegs)
	v.tid = unix.Gettid()
	return v
}

// TestRunErrors: what KVM_RUN refuses is an error with the processor, the
// errno and, if the kernel says so, the address of the access.
func TestRunErrors(t *testing.T) {
	v := fabricated(newPage(ExitMemoryFault).u64(8, 0x5000).u64(16, 0x1000))
	if _, err := v.Run(); !errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), "KVM_RUN") || !strings.Contains(err.Error(), "processor 3") {
		t.Errorf("closed processor: %v", err)
	}
	if err := v.CompleteExit(); err != nil {
		t.Errorf("nothing to complete: %v", err)
	}
	v.exited = true
	if err := v.CompleteExit(); !errors.Is(err, unix.EBADF) {
		t.Errorf("completion on a closed processor: %v", err)
	}
	if err := v.runError(unix.EFAULT); !errors.Is(err, unix.EFAULT) || !strings.Contains(err.Error(), "0x5000, 4096 bytes") {
		t.Errorf("memory fault: %v", err)
	}
	// Another errno, or another exit before: the page says nothing about it.
	if err := v.runError(unix.EINVAL); strings.Contains(err.Error(), "0x5000") {
		t.Errorf("EINVAL: %v", err)
	}
	v = fabricated(newPage(ExitHLT))
	if err := v.runError(unix.EFAULT); strings.Contains(err.Error(), "bytes") {
		t.Errorf("fault without information: %v", err)
	}
}

// TestRunPage reads and writes the fields of the page that are not exits.
func TestRunPage(t *testing.T) {
	p := newPage(ExitHLT)
	p[offIFFlag], p[offReadyForInjection] = 1, 1
	binary.LittleEndian.PutUint64(p[offCR8:], 9)
	binary.LittleEndian.PutUint64(p[offAPICBase:], 0xFEE00D00)
	v := fabricated(p)
	if v.ID() != 3 || !v.IFFlag() || !v.ReadyForInjection() || v.CR8() != 9 || v.APICBase() != 0xFEE00D00 {
		t.Errorf("%d %v %v %d %#x", v.ID(), v.IFFlag(), v.ReadyForInjection(), v.CR8(), v.APICBase())
	}
	v.RequestInterruptWindow(true)
	if p[0] != 1 || p[1] != 0 {
		t.Errorf("window on: % x", p[:8])
	}
	v.RequestInterruptWindow(false)
	if p[0] != 0 {
		t.Errorf("window off: % x", p[:8])
	}
	if err := v.EnableSync(SyncRegs); err != nil || p[288] != 1 {
		t.Errorf("sync: %v, %d", err, p[288])
	}
	if err := v.EnableSync(SyncRegs | SyncSregs); err == nil || !strings.Contains(err.Error(), "asked for 0x3, has 0x1") {
		t.Errorf("class that the kernel lacks: %v", err)
	}
	v.SyncRegs().RAX = 0x0102030405060708
	if p[304] != 8 || p[311] != 1 {
		t.Errorf("RAX in the page: % x", p[304:312])
	}
	v.SyncSregs().EFER = 0xD01
	if binary.LittleEndian.Uint64(p[448+264:]) != 0xD01 {
		t.Error("EFER is not where it belongs")
	}
	v.SyncEvents().I.Nr = 0x41
	if p[760+9] != 0x41 {
		t.Error("the interrupt is not where it belongs")
	}
	v.MarkDirty(SyncSregs)
	v.MarkDirty(SyncRegs)
	if p[296] != 3 || v.Dirty() != SyncRegs|SyncSregs {
		t.Errorf("dirty %#x", p[296])
	}
}
