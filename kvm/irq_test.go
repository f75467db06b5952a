package kvm_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/bare"
	"github.com/hvpost/hvpost/kvm/kvmtest"
)

// eventFD returns a non-blocking eventfd for the time of the test.
func eventFD(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// count reads an eventfd, waiting up to a second for the first event if wait
// is set: the kernel signals some of them from a worker.
func count(t *testing.T, fd int, wait bool) uint64 {
	t.Helper()
	if wait {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
			if n, err := unix.Poll(p, int(time.Until(deadline).Milliseconds())+1); n > 0 || err != unix.EINTR {
				break
			}
		}
	}
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err == unix.EAGAIN {
		return 0
	} else if err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

func raise(t *testing.T, fd int) {
	t.Helper()
	var b [8]byte
	b[0] = 1
	_, err := unix.Write(fd, b[:])
	must(t, err)
}

// TestIOEventFDPort: a matching write is consumed by the kernel, any other
// one exits; after the removal all do.
func TestIOEventFDPort(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	loop := []byte{
		0xB8, 0x34, 0x12, 0, 0, // mov eax, 0x1234
		0xE7, 0x90, //             out 0x90, eax   hit of the first
		0xFF, 0xC0, //             inc eax
		0xE7, 0x90, //             out 0x90, eax   hit of the second
		0xFF, 0xC0, //             inc eax
		0xE7, 0x90, //             out 0x90, eax   miss: data
		0xB8, 0x34, 0x12, 0, 0, // mov eax, 0x1234
		0x66, 0xE7, 0x90, //       out 0x90, ax    miss: size
		0xE7, 0x94, //             out 0x94, eax   miss: port
		0xF4,
		0xEB, 0, // jmp to the start, patched
	}
	loop[len(loop)-1] = byte(-len(loop))
	must(t, g.Long(loop...))
	one, two := eventFD(t), eventFD(t)
	first := kvm.IOEvent{Addr: 0x90, Len: 4, PIO: true, Match: true, Data: 0x1234, FD: one}
	second := kvm.IOEvent{Addr: 0x90, Len: 4, PIO: true, Match: true, Data: 0x1235, FD: two}
	must(t, g.VM.IOEventFD(first))
	must(t, g.VM.IOEventFD(second))
	if err := g.VM.IOEventFD(second); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same event twice: %v", err)
	}

	out := func(port uint16, data uint32, size uint8) {
		t.Helper()
		e := run(t, g.VCPU, kvm.ExitIO)
		var b [4]byte
		copy(b[:], e.IO.Data)
		if e.IO.Port != port || e.IO.Size != size || binary.LittleEndian.Uint32(b[:]) != data {
			t.Fatalf("%v with % x, want %#x on %#x", e, e.IO.Data, data, port)
		}
	}
	misses := func() {
		t.Helper()
		out(0x90, 0x1236, 4)
		out(0x90, 0x1234, 2)
		out(0x94, 0x1234, 4)
		run(t, g.VCPU, kvm.ExitHLT)
	}
	misses()
	if a, b := count(t, one, false), count(t, two, false); a != 1 || b != 1 {
		t.Errorf("events %d and %d", a, b)
	}
	must(t, g.VM.RemoveIOEventFD(first))
	out(0x90, 0x1234, 4)
	misses()
	if a, b := count(t, one, false), count(t, two, false); a != 0 || b != 1 {
		t.Errorf("after the removal of the first: events %d and %d", a, b)
	}
	if err := g.VM.RemoveIOEventFD(first); !errors.Is(err, unix.ENOENT) {
		t.Errorf("removed twice: %v", err)
	}
	// Without a match any value of the size counts.
	must(t, g.VM.RemoveIOEventFD(second))
	any := kvm.IOEvent{Addr: 0x90, Len: 4, PIO: true, FD: one}
	must(t, g.VM.IOEventFD(any))
	out(0x90, 0x1234, 2)
	out(0x94, 0x1234, 4)
	run(t, g.VCPU, kvm.ExitHLT)
	if a := count(t, one, false); a != 3 {
		t.Errorf("without a match: %d events", a)
	}
}

func TestIOEventFDMMIO(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0xBB, 0, 0, 0, 0x10, // mov ebx, 0x10000000
		0xB8, 7, 0, 0, 0, //    mov eax, 7
		0x89, 0x03, //          mov [rbx], eax    hit
		0xFF, 0xC0, //          inc eax
		0x89, 0x03, //          mov [rbx], eax    miss
		0xF4,
	))
	fd := eventFD(t)
	ev := kvm.IOEvent{Addr: 0x10000000, Len: 4, Match: true, Data: 7, FD: fd}
	must(t, g.VM.IOEventFD(ev))
	e := run(t, g.VCPU, kvm.ExitMMIO)
	if !e.MMIO.Write || e.MMIO.Data[0] != 8 {
		t.Errorf("%v with % x", e, e.MMIO.Data)
	}
	run(t, g.VCPU, kvm.ExitHLT)
	if n := count(t, fd, false); n != 1 {
		t.Errorf("%d events", n)
	}
	if err := g.VM.IOEventFD(kvm.IOEvent{Addr: 0x10000000, Len: 3, FD: fd}); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "Len:3") {
		t.Errorf("length 3: %v", err)
	}
}

// apicGuest is a guest in x2APIC mode that halts with interrupts on. Vector
// 0x41 writes 0x41 to port 0x81, 0x42 to 0x82 after an EOI.
func apicGuest(t *testing.T) *bare.Guest {
	t.Helper()
	g := kvmtest.Guest(t, bare.Config{IRQChip: true})
	s, err := g.VCPU.Sregs()
	must(t, err)
	s.ApicBase |= 1<<11 | 1<<10 // enabled, x2APIC
	must(t, g.VCPU.SetSregs(&s))
	must(t, g.Long(
		0xB9, 0x0F, 0x08, 0, 0, // mov ecx, 0x80F    SVR
		0xB8, 0xFF, 0x01, 0, 0, // mov eax, 0x1FF    enabled
		0x31, 0xD2, //             xor edx, edx
		0x0F, 0x30, //             wrmsr
		0xE6, 0x80, //             out 0x80, al      ready
		0xFB,       //       sti
		0xF4,       //             hlt
		0xEB, 0xFC, //             jmp to sti
	))
	for i, vector := range []uint8{0x41, 0x42} {
		at := bare.Code + 0x100 + 0x20*uint64(i)
		must(t, g.Mem.WriteAt([]byte{
			0xE6, 0x81 + byte(i), //   out 0x81, al
			0xB9, 0x0B, 0x08, 0, 0, // mov ecx, 0x80B    EOI
			0x31, 0xC0, //             xor eax, eax
			0x31, 0xD2, //             xor edx, edx
			0x0F, 0x30, //             wrmsr
			0x48, 0xCF, //             iretq
		}, guest.GPA(at)))
		must(t, g.Handler(vector, at))
	}
	if e := run(t, g.VCPU, kvm.ExitIO); e.IO.Port != 0x80 {
		t.Fatalf("%v", e)
	}
	return g
}

func port(t *testing.T, v *kvm.VCPU, want uint16) {
	t.Helper()
	if e := run(t, v, kvm.ExitIO); e.IO.Port != want {
		t.Fatalf("%v, want port %#x", e, want)
	}
}

const msiAddr = 0xFEE00000

func TestSignalMSI(t *testing.T) {
	g := apicGuest(t)
	for range 100 {
		for i, data := range []uint32{0x41, 0x42} {
			ok, err := g.VM.SignalMSI(msiAddr, data)
			must(t, err)
			if !ok {
				t.Fatalf("vector %#x not delivered", data)
			}
			port(t, g.VCPU, 0x81+uint16(i))
		}
	}
	// To an APIC that is not there.
	if ok, err := g.VM.SignalMSI(msiAddr|5<<12, 0x41); ok || err != nil {
		t.Errorf("to APIC 5: %v, %v", ok, err)
	}
	none := kvmtest.Unowned(t, bare.Config{})
	if _, err := none.VM.SignalMSI(msiAddr, 0x41); !errors.Is(err, unix.EINVAL) {
		t.Errorf("without APICs: %v", err)
	}
}

// TestRoutesAndIRQFD leads GSI 30 to a message and raises it by an eventfd.
func TestRoutesAndIRQFD(t *testing.T) {
	g := apicGuest(t)
	must(t, g.VM.SetGSIRouting([]kvm.Route{
		{GSI: 4, Chip: kvm.ChipIOAPIC, Pin: 4},
		{GSI: 30, MSI: true, Addr: msiAddr, Data: 0x42},
	}))
	fd := eventFD(t)
	must(t, g.VM.IRQFD(30, fd, -1))
	for range 10 {
		raise(t, fd)
		port(t, g.VCPU, 0x82)
	}
	must(t, g.VM.RemoveIRQFD(30, fd))
	raise(t, fd)
	if n := count(t, fd, false); n != 1 {
		t.Errorf("%d events left after the removal", n)
	}
	must(t, g.VM.IRQLine(30, true))
	port(t, g.VCPU, 0x82)
	if err := g.VM.SetGSIRouting([]kvm.Route{{GSI: 1, Chip: 9}}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("route to chip 9: %v", err)
	}
}

// keepsISR reports whether the local APIC holds a vector in service until the
// guest's EOI, as hardware does. A KVM that interprets its guests was seen to
// end every interrupt as it delivers it. The guest must be in a handler.
func keepsISR(t *testing.T, v *kvm.VCPU) bool {
	t.Helper()
	var l kvm.LAPICState
	must(t, v.GetLAPIC(&l))
	for i := range 8 {
		if binary.LittleEndian.Uint32(l.Regs[0x100+16*i:]) != 0 {
			return true
		}
	}
	return false
}

// TestIRQFDResample: a level through the IOAPIC, lowered by the guest's EOI,
// which signals the resample eventfd.
func TestIRQFDResample(t *testing.T) {
	g := apicGuest(t)
	c := kvm.IRQChip{ChipID: kvm.ChipIOAPIC}
	must(t, g.VM.GetIRQChip(&c))
	const pin = 17 // below 16 the PIC would answer too, with a vector it was never given
	// Vector 0x41, fixed, physical, level, not masked, to APIC 0.
	binary.LittleEndian.PutUint64(c.Chip[24+8*pin:], 1<<15|0x41)
	must(t, g.VM.SetIRQChip(&c))
	fd, again := eventFD(t), eventFD(t)
	must(t, g.VM.IRQFD(pin, fd, again))
	for i := range 10 {
		raise(t, fd)
		port(t, g.VCPU, 0x81)
		if !keepsISR(t, g.VCPU) {
			t.Log("no EOI needed on this KVM: the order is not checked")
		} else if n := count(t, again, false); n != 0 {
			t.Fatalf("round %d: %d resamples before the EOI", i, n)
		}
		// The handler's EOI comes before the next exit; a second interrupt
		// gives one.
		if _, err := g.VM.SignalMSI(msiAddr, 0x42); err != nil {
			t.Fatal(err)
		}
		port(t, g.VCPU, 0x82)
		if n := count(t, again, true); n != 1 {
			t.Fatalf("round %d: %d resamples", i, n)
		}
	}
	must(t, g.VM.RemoveIRQFD(pin, fd))
}

// TestIRQLine raises and lowers a level-triggered pin.
func TestIRQLine(t *testing.T) {
	g := apicGuest(t)
	c := kvm.IRQChip{ChipID: kvm.ChipIOAPIC}
	must(t, g.VM.GetIRQChip(&c))
	const pin = 18
	binary.LittleEndian.PutUint64(c.Chip[24+8*pin:], 1<<15|0x42)
	must(t, g.VM.SetIRQChip(&c))
	must(t, g.VM.IRQLine(pin, true))
	port(t, g.VCPU, 0x82)
	held := keepsISR(t, g.VCPU)
	port(t, g.VCPU, 0x82) // still high: again after the EOI
	must(t, g.VM.IRQLine(pin, false))
	_, err := g.VM.SignalMSI(msiAddr, 0x41)
	must(t, err)
	e := run(t, g.VCPU, kvm.ExitIO)
	if !held && e.IO.Port == 0x82 {
		e = run(t, g.VCPU, kvm.ExitIO) // it had ended at its delivery, so once more
	}
	if e.IO.Port != 0x81 {
		t.Errorf("%v after the line went low", e)
	}
}
