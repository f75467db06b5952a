package vmm

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hvpost/hvpost/firmware/boot"
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/kvm/kvmtest"
	"github.com/hvpost/hvpost/synic/hv"
)

// Addresses of the bare guests below.
const (
	bareTables = 0x3000
	bareCode   = 0x10_0000
	barePage   = 0x20_0000 // hypercall page
	bareInput  = 0x20_1000
	bareStack  = 0x30_0000
	bareExit   = 0xF4
	bareGDT    = 0x20_6000
)

// asm is a 64-bit program as bytes.
type asm struct{ b bytes.Buffer }

func (a *asm) bytes(b ...byte) *asm { a.b.Write(b); return a }

func (a *asm) imm32(op byte, v uint32) *asm {
	return a.bytes(append([]byte{op}, binary.LittleEndian.AppendUint32(nil, v)...)...)
}

// wrmsr writes v to msr.
func (a *asm) wrmsr(msr hv.MSR, v uint64) *asm {
	a.imm32(0xB9, uint32(msr))   // mov ecx, msr
	a.imm32(0xB8, uint32(v))     // mov eax, low
	a.imm32(0xBA, uint32(v>>32)) // mov edx, high
	return a.bytes(0x0F, 0x30)
}

// call calls the hypercall page with the registers given and leaves RAX.
func (a *asm) call(control, rdx, r8 uint64) *asm {
	imm := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	a.bytes(append([]byte{0x48, 0xB9}, imm(control)...)...) // mov rcx
	a.bytes(append([]byte{0x48, 0xBA}, imm(rdx)...)...)     // mov rdx
	a.bytes(append([]byte{0x49, 0xB8}, imm(r8)...)...)      // mov r8
	a.bytes(append([]byte{0x48, 0xB8}, imm(barePage)...)...)
	return a.bytes(0xFF, 0xD0) // call rax
}

// exit writes EAX to the exit port.
func (a *asm) exit() *asm { return a.bytes(0xE7, bareExit, 0xF4) }

// enable sets up the guest id and the hypercall page.
func (a *asm) enable() *asm {
	return a.wrmsr(hv.MSRGuestOSID, 0x8100_0000_0000_0001).wrmsr(hv.MSRHypercall, barePage|1)
}

// bare builds a machine that runs the program on VP 0.
func bare(t *testing.T, a *asm, change ...func(*Config)) *Machine {
	t.Helper()
	kvmtest.Need(t)
	cfg := Config{VPs: 1, Memory: 8 << 20, ExitPort: bareExit, Load: func(mem *guest.Memory, _ Firmware) (boot.State, error) {
		tables := make([]byte, 3*guest.PageSize)
		binary.LittleEndian.PutUint64(tables, bareTables+0x1000|3)
		binary.LittleEndian.PutUint64(tables[0x1000:], bareTables+0x2000|3)
		for i := range uint64(512) {
			binary.LittleEndian.PutUint64(tables[0x2000+8*i:], i<<21|0x83)
		}
		if err := mem.WriteAt(tables, bareTables); err != nil {
			return boot.State{}, err
		}
		if err := mem.WriteAt(a.b.Bytes(), bareCode); err != nil {
			return boot.State{}, err
		}
		code := boot.Segment{Selector: 8, Limit: 0xFFFFFFFF, Type: 0xB, S: true, Present: true, L: true, G: true}
		data := boot.Segment{Selector: 16, Limit: 0xFFFFFFFF, Type: 3, S: true, Present: true, DB: true, G: true}
		return boot.State{
			RIP: bareCode, RSP: bareStack, RFLAGS: 2, CR0: 0x8000_0033, CR3: bareTables, CR4: 0x20, EFER: 0x500,
			CS: code, DS: data, ES: data, FS: data, GS: data, SS: data,
			GDT: boot.Table{Base: bareGDT, Limit: 23},
			TR:  boot.Segment{Type: 0xB, Present: true, Limit: 0x67},
		}, nil
	}}
	for _, f := range change {
		f(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// runs runs the machine and expects the cause.
func runs(t *testing.T, m *Machine, cause Cause) Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	o, err := m.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if o.Cause != cause {
		t.Fatalf("ended by %s (%s), want %s; %v", o.Cause, o.Detail, cause, o.VPs)
	}
	return o
}

func TestHypercall_StatusComesBackInRAX(t *testing.T) {
	post := uint64(hv.CallPostMessage)
	signal := uint64(hv.CallSignalEvent) | 1<<16
	for _, c := range []struct {
		name         string
		control, rdx uint64
		want         hv.Status
	}{
		{"unknown code", 0x7FFF, 0, hv.StatusInvalidHypercallCode},
		{"post to nobody", post, bareInput, hv.StatusInvalidConnectionID},
		{"post unaligned", post, bareInput + 4, hv.StatusInvalidAlignment},
		{"signal nobody, fast path", signal, 0x123, hv.StatusInvalidConnectionID},
		{"signal nobody, flag number", signal, 1<<32 | 0x123, hv.StatusInvalidConnectionID},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := bare(t, new(asm).enable().call(c.control, c.rdx, 0).exit())
			// A message that is well formed but for its connection.
			in := make([]byte, 256)
			binary.LittleEndian.PutUint32(in, 0x123)
			binary.LittleEndian.PutUint32(in[8:], 1)
			if err := m.Memory().WriteAt(in, bareInput); err != nil {
				t.Fatal(err)
			}
			o := runs(t, m, CauseExitPort)
			if got := hv.Status(o.Value & 0xFFFF); got != c.want {
				t.Errorf("status %v, want %v", got, c.want)
			}
		})
	}
}

// bell counts events.
type bell struct{ n atomic.Int32 }

func (b *bell) HandleEvent(uint16) { b.n.Add(1) }

// A signal to a connection with a doorbell is taken in the kernel: success
// for the guest, no exit, and the port hears of it.
func TestSignal_DoorbellNeedsNoExit(t *testing.T) {
	const id = 0x2001
	signal := uint64(hv.CallSignalEvent) | 1<<16
	m := bare(t, new(asm).enable().imm32(0xB8, 7).call(signal, id, 0).call(signal, id, 0).exit())
	b := &bell{}
	if err := m.Partition().ConnectEvent(id, 1, b); err != nil {
		t.Fatal(err)
	}
	o := runs(t, m, CauseExitPort)
	if o.Value != 0 {
		t.Errorf("status %#x", o.Value)
	}
	if n := o.Stats.Exits["signal"] + o.Stats.Exits["hypercall"]; n != 0 {
		t.Errorf("%d exits for signals", n)
	}
	if o.Stats.Doorbells != 2 || b.n.Load() < 1 {
		t.Errorf("%d doorbells, %d events", o.Stats.Doorbells, b.n.Load())
	}
}

func TestOutcomes(t *testing.T) {
	sleep := func(port uint16, v byte) *asm {
		return new(asm).bytes(0x66, 0xBA, byte(port), byte(port>>8), 0xB0, v, 0xEE, 0xF4) // mov dx; mov al; out dx, al; hlt
	}
	s5 := new(asm).bytes(0x66, 0xBA, 0x04, 0x06, 0x66, 0xB8, 0x00, 0x34, 0x66, 0xEF, 0xF4)
	for _, c := range []struct {
		name  string
		code  *asm
		cause Cause
	}{
		{"ACPI S5", s5, CausePowerOff},
		{"ACPI reset", sleep(pmPort+8, 1), CauseReset},
		{"keyboard controller", sleep(kbdPort, 0xFE), CauseReset},
		{"reset MSR", new(asm).wrmsr(hv.MSRReset, 1), CauseReset},
		{"triple fault", new(asm).bytes(0x0F, 0x0B), CauseTripleFault},
		{"exit port", new(asm).imm32(0xB8, 42).exit(), CauseExitPort},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := runs(t, bare(t, c.code), c.cause)
			if len(o.VPs) != 1 || o.VPs[0].Err != "" {
				t.Errorf("processors: %v", o.VPs)
			}
			if c.cause == CauseExitPort && o.Value != 42 {
				t.Errorf("value %d", o.Value)
			}
		})
	}
}

func TestCrash_TextIsReported(t *testing.T) {
	const text = "Kernel panic - not syncing: test\n"
	m := bare(t, new(asm).
		wrmsr(hv.MSRCrashP0+3, bareInput).wrmsr(hv.MSRCrashP0+4, uint64(len(text))).
		wrmsr(hv.MSRCrashCtl, 3<<62))
	if err := m.Memory().WriteAt([]byte(text), bareInput); err != nil {
		t.Fatal(err)
	}
	o := runs(t, m, CauseCrash)
	if o.Crash == nil || string(o.Crash.Message) != text {
		t.Errorf("crash %+v", o.Crash)
	}
}

// A guest that takes no interrupts must not keep the machine from stopping.
func TestStop_SpinningAndHaltedGuests(t *testing.T) {
	for name, code := range map[string]*asm{
		"spinning":         new(asm).bytes(0xFA, 0xEB, 0xFE),       // cli; jmp .
		"halted for good":  new(asm).bytes(0xFA, 0xF4, 0xEB, 0xFD), // cli; hlt
		"exits in a storm": new(asm).bytes(0xE4, 0x80, 0xEB, 0xFC), // in al, 0x80; jmp
	} {
		t.Run(name, func(t *testing.T) {
			m := bare(t, code, func(c *Config) { c.VPs = 2 })
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			start := time.Now()
			o, err := m.Run(ctx)
			if err != nil || o.Cause != CauseStopped {
				t.Fatalf("%+v, %v", o, err)
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %v to stop", d)
			}
			if len(o.VPs) != 2 {
				t.Errorf("%d processors in the outcome", len(o.VPs))
			}
		})
	}
}

func TestConsole_ReachesTheWriter(t *testing.T) {
	var out bytes.Buffer
	code := new(asm).bytes(0x66, 0xBA, 0xF8, 0x03)
	for _, b := range []byte("hi\n") {
		code.bytes(0xB0, b, 0xEE)
	}
	m := bare(t, code.imm32(0xB8, 0).exit(), func(c *Config) { c.Console = &out })
	o := runs(t, m, CauseExitPort)
	if out.String() != "hi\n" {
		t.Errorf("console %q", out.String())
	}
	if o.Stats.Exits["console"] != 3 {
		t.Errorf("exits %v", o.Stats.Exits)
	}
}

// A machine leaves no goroutine and no descriptor behind.
func TestClose_LeavesNothing(t *testing.T) {
	kvmtest.Need(t)
	fds := func() int {
		es, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(es)
	}
	once := func(t *testing.T) {
		m := bare(t, new(asm).enable().imm32(0xB8, 1).exit(), func(c *Config) { c.VPs = 4 })
		m.Partition().ConnectEvent(0x2001, 1, &bell{})
		runs(t, m, CauseExitPort)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("first", once) // what the runtime opens for itself is open now
	f0, g0 := fds(), runtime.NumGoroutine()
	for range 5 {
		t.Run("again", once)
	}
	for range 100 {
		if runtime.NumGoroutine() <= g0 && fds() <= f0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("descriptors %d -> %d, goroutines %d -> %d", f0, fds(), g0, runtime.NumGoroutine())
}

func TestNew_BadConfig_IsRefused(t *testing.T) {
	load := func(*guest.Memory, Firmware) (boot.State, error) { return boot.State{}, nil }
	for name, c := range map[string]Config{
		"no VPs":         {Memory: 8 << 20, Load: load},
		"too many VPs":   {VPs: 65, Memory: 8 << 20, Load: load},
		"no memory":      {VPs: 1, Load: load},
		"part of a page": {VPs: 1, Memory: 8<<20 + 1, Load: load},
		"no loader":      {VPs: 1, Memory: 8 << 20},
		"odd window":     {VPs: 1, Memory: 8 << 20, Load: load, Window: 12345},
		"no device":      {VPs: 1, Memory: 8 << 20, Load: load, KVM: "/nonexistent/kvm"},
	} {
		m, err := New(c)
		if err == nil {
			m.Close()
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: not one line: %q", name, err)
		}
	}
}
