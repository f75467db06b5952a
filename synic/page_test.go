package synic_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/arch/x86/x86asm"
	"pgregory.net/rapid"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

func TestHypercallPageGolden(t *testing.T) {
	page := synic.HypercallPage(0xE0, 0xE4)
	const want = "f30f1efa" + "50" + "31c0" + "4090" + "85c0" + "58" + "7519" +
		"4881f95d000100" + "7510" + "4889d0" + "48c1e820" + "7507" + "89d0" +
		"e7e4" + "31c0" + "c3" + "e7e0" + "c3"
	n := len(want) / 2
	if got := hex.EncodeToString(page[:n]); got != want {
		t.Errorf("page\n%s, want\n%s", got, want)
	}
	if !bytes.Equal(page[n:], bytes.Repeat([]byte{0xCC}, guest.PageSize-n)) {
		t.Error("the rest is not int3")
	}
	for name, c := range map[string]struct{ off, want int }{
		"TrapOut": {synic.TrapOut, 0xE7}, "TrapDone": {synic.TrapDone, 0xC3},
		"SignalOut": {synic.SignalOut, 0xE7}, "SignalDone": {synic.SignalDone, 0xC3},
	} {
		if int(page[c.off]) != c.want {
			t.Errorf("%s: byte %#x at %#x, want %#x", name, page[c.off], c.off, c.want)
		}
	}
	if page[synic.SignalOut+1] != 0xE4 || page[synic.TrapOut+1] != 0xE0 ||
		synic.SignalDone != synic.SignalOut+2+synic.SignalSkip || synic.TrapDone != synic.TrapOut+2 {
		t.Error("the constants do not fit the page")
	}
}

// decode returns the instructions of the page's program in the given mode.
func decode(t *testing.T, page []byte, mode int) map[int]x86asm.Inst {
	t.Helper()
	insts := make(map[int]x86asm.Inst)
	for off := 4; off <= synic.TrapDone; { // the decoder does not know endbr64
		inst, err := x86asm.Decode(page[off:], mode)
		if err != nil {
			t.Fatalf("%d-bit: offset %#x: %v", mode, off, err)
		}
		insts[off] = inst
		off += inst.Len
	}
	return insts
}

func TestHypercallPageDecode(t *testing.T) {
	page := synic.HypercallPage(0xE0, 0xE4)
	text := func(mode int, until int) string {
		var s []string
		insts := decode(t, page[:], mode)
		for off := 4; off < until; off += insts[off].Len {
			s = append(s, x86asm.IntelSyntax(insts[off], uint64(off), nil))
		}
		return strings.Join(s, "; ")
	}
	for _, c := range []struct {
		mode, until int
		want        string
	}{
		{64, 0x2A, "push rax; xor eax, eax; nop; test eax, eax; pop rax; jnz 0x27; cmp rcx, 0x1005d; jnz 0x27; " +
			"mov rax, rdx; shr rax, 0x20; jnz 0x27; mov eax, edx; out 0xe4, eax; xor eax, eax; ret; out 0xe0, eax; ret"},
		{32, 0x0E, "push eax; xor eax, eax; inc eax; nop; test eax, eax; pop eax; jnz 0x27"},
	} {
		if got := text(c.mode, c.until); got != c.want {
			t.Errorf("%d-bit:\n%s, want\n%s", c.mode, got, c.want)
		}
	}
	insts := decode(t, page[:], 32)
	if got := insts[synic.TrapOut].String() + insts[synic.TrapDone].String(); got != decode(t, page[:], 64)[synic.TrapOut].String()+"RET" {
		t.Errorf("32-bit plain path: %s", got)
	}
}

// cpu runs the instructions that the page uses.
type cpu struct {
	reg   map[x86asm.Reg]uint64 // by the name of the 64-bit register
	stack []uint64
	zero  bool
	mode  int
}

var widths = map[x86asm.Reg]struct {
	full x86asm.Reg
	bits int
}{
	x86asm.RAX: {x86asm.RAX, 64}, x86asm.EAX: {x86asm.RAX, 32},
	x86asm.RCX: {x86asm.RCX, 64}, x86asm.ECX: {x86asm.RCX, 32},
	x86asm.RDX: {x86asm.RDX, 64}, x86asm.EDX: {x86asm.RDX, 32},
}

func (c *cpu) get(a x86asm.Arg) uint64 {
	switch a := a.(type) {
	case x86asm.Imm:
		return uint64(a)
	case x86asm.Reg:
		w := widths[a]
		return c.reg[w.full] & (1<<(w.bits-1)<<1 - 1)
	}
	panic(fmt.Sprintf("argument %v", a))
}

func (c *cpu) set(a x86asm.Arg, v uint64) {
	w, ok := widths[a.(x86asm.Reg)]
	if !ok {
		panic(fmt.Sprintf("the page writes %v", a))
	}
	if w.bits == 32 {
		v = uint64(uint32(v))
	}
	c.reg[w.full] = v
}

// run executes the page from offset off to an OUT, which exits, or to the end.
func (c *cpu) run(t *testing.T, page []byte, off int) (stop int, inst x86asm.Inst) {
	t.Helper()
	if off == 0 {
		off = 4
	}
	for steps := 0; steps < 100; steps++ {
		inst, err := x86asm.Decode(page[off:], c.mode)
		if err != nil {
			t.Fatalf("offset %#x: %v", off, err)
		}
		next := off + inst.Len
		a := inst.Args
		switch inst.Op {
		case x86asm.NOP:
		case x86asm.PUSH:
			c.stack = append(c.stack, c.get(a[0]))
		case x86asm.POP:
			c.set(a[0], c.stack[len(c.stack)-1])
			c.stack = c.stack[:len(c.stack)-1]
		case x86asm.XOR:
			c.set(a[0], c.get(a[0])^c.get(a[1]))
			c.zero = c.get(a[0]) == 0
		case x86asm.INC:
			c.set(a[0], c.get(a[0])+1)
			c.zero = c.get(a[0]) == 0
		case x86asm.TEST:
			c.zero = c.get(a[0])&c.get(a[1]) == 0
		case x86asm.CMP:
			c.zero = c.get(a[0]) == c.get(a[1])
		case x86asm.MOV:
			c.set(a[0], c.get(a[1]))
		case x86asm.SHR:
			c.set(a[0], c.get(a[0])>>c.get(a[1]))
			c.zero = c.get(a[0]) == 0
		case x86asm.JNE:
			if !c.zero {
				next += int(a[0].(x86asm.Rel))
			}
		case x86asm.OUT, x86asm.RET:
			return off, inst
		default:
			t.Fatalf("offset %#x: %v", off, inst)
		}
		off = next
	}
	t.Fatal("the page does not end")
	return 0, inst
}

// Whatever a 64-bit caller asks for, the fast path is taken exactly for a fast
// SignalEvent of flag 0, and only RAX changes.
func TestHypercallPage64(t *testing.T) {
	page := synic.HypercallPage(0xE0, 0xE4)
	rapid.Check(t, func(rt *rapid.T) {
		rcx := rapid.OneOf(rapid.Just(uint64(0x1005D)), rapid.SampledFrom([]uint64{0, 0x5D, 0x5C, 0x1_0001_005D, 0xFFFF_FFFF_0001_005D, 1 << 63}), rapid.Uint64()).Draw(rt, "rcx")
		rdx := rapid.OneOf(rapid.Uint64Range(0, 1<<32-1), rapid.SampledFrom([]uint64{1 << 32, 1 << 63, 1<<64 - 1}), rapid.Uint64()).Draw(rt, "rdx")
		rax := rapid.Uint64().Draw(rt, "rax")
		c := &cpu{mode: 64, reg: map[x86asm.Reg]uint64{x86asm.RAX: rax, x86asm.RCX: rcx, x86asm.RDX: rdx}}
		off, inst := c.run(t, page[:], 0)
		fast := rcx == 0x1005D && rdx < 1<<32
		want := synic.TrapOut
		if fast {
			want = synic.SignalOut
		}
		if off != want || inst.Op != x86asm.OUT {
			t.Fatalf("rcx %#x rdx %#x: stopped at %#x, want %#x", rcx, rdx, off, want)
		}
		if c.reg[x86asm.RCX] != rcx || c.reg[x86asm.RDX] != rdx || len(c.stack) != 0 {
			t.Fatal("a register or the stack changed")
		}
		if !fast {
			return
		}
		if c.get(x86asm.EAX) != rdx {
			t.Fatalf("the OUT has %#x, want the connection id %#x", c.get(x86asm.EAX), rdx)
		}
		// Taken by the kernel: on to the RET with SUCCESS.
		if off, inst := c.run(t, page[:], off+inst.Len); off != synic.SignalDone || inst.Op != x86asm.RET || c.reg[x86asm.RAX] != 0 {
			t.Fatalf("after the signal: %v at %#x with rax %#x", inst, off, c.reg[x86asm.RAX])
		}
	})
}

// A 32-bit caller always comes out at the plain trap with all its registers.
func TestHypercallPage32(t *testing.T) {
	page := synic.HypercallPage(0xE0, 0xE4)
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(n string) uint64 { return uint64(rapid.Uint32().Draw(rt, n)) }
		r := map[x86asm.Reg]uint64{x86asm.RAX: draw("eax"), x86asm.RCX: draw("ecx"), x86asm.RDX: draw("edx")}
		if rapid.Bool().Draw(rt, "signal") {
			r[x86asm.RAX], r[x86asm.RDX], r[x86asm.RCX] = 0x1005D, 0, 0x1005D
		}
		c := &cpu{mode: 32, reg: map[x86asm.Reg]uint64{}}
		for k, v := range r {
			c.reg[k] = v
		}
		off, inst := c.run(t, page[:], 0)
		if off != synic.TrapOut || inst.Op != x86asm.OUT || len(c.stack) != 0 {
			t.Fatalf("stopped at %#x: %v", off, inst)
		}
		for k, v := range r {
			if c.reg[k] != v {
				t.Fatalf("%v changed from %#x to %#x", k, v, c.reg[k])
			}
		}
		if off, inst := c.run(t, page[:], off+inst.Len); off != synic.TrapDone || inst.Op != x86asm.RET {
			t.Fatalf("after the trap: %v at %#x", inst, off)
		}
	})
}

// countingEvents is an EventPort that remembers its calls.
type countingEvents struct{ flags []uint16 }

func (c *countingEvents) HandleEvent(flag uint16) { c.flags = append(c.flags, flag) }

func TestTrap(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(2)
	p := g.Partition
	events := &countingEvents{}
	if err := p.ConnectEvent(0x42, 8, events); err != nil {
		t.Fatal(err)
	}
	legal := synic.Environment{Protected: true, Long: true, InPage: true}
	const linear = 0xFFFF_8000_1234_5000

	t.Run("64-bit", func(t *testing.T) {
		for _, rip := range []uint64{linear + synic.TrapOut, linear + synic.TrapDone} {
			r := synic.Registers{RAX: 1, RBX: 2, RCX: 0x1005D, RDX: 3<<32 | 0x42, RSI: 5, RDI: 6, R8: 7, RIP: rip}
			want := r
			want.RAX, want.RIP = 0, linear+synic.TrapDone
			if !p.Trap(0, synictest.TrapPort, legal, &r) || r != want {
				t.Errorf("registers %+v, want %+v", r, want)
			}
		}
		if fmt.Sprint(events.flags) != "[3 3]" {
			t.Errorf("flags %v", events.flags)
		}
	})
	t.Run("missed signal", func(t *testing.T) {
		for _, rip := range []uint64{linear + synic.SignalOut, linear + synic.SignalOut + 2} {
			r := synic.Registers{RAX: 0x43, RCX: 0x1005D, RDX: 0x43, RIP: rip}
			if !p.Trap(0, synictest.SignalPort, legal, &r) || r.RAX != uint64(hv.StatusInvalidConnectionID) || r.RIP != linear+synic.SignalDone {
				t.Errorf("registers %+v", r)
			}
		}
	})
	t.Run("32-bit", func(t *testing.T) {
		events.flags = nil
		env := legal
		env.Long, env.CSBase = false, 0x10
		// SignalEvent fast: EDX:EAX the input, EBX:ECX the parameter. The high
		// halves are leftovers of 64-bit code.
		const old = 0xDEAD_0000_0000_0000
		r := synic.Registers{RAX: old | 0x1005D, RDX: old, RBX: old | 2, RCX: old | 0x42, RSI: 9, RDI: 8, RIP: 0x5000 - 0x10 + synic.TrapOut}
		if !p.Trap(0, synictest.TrapPort, env, &r) {
			t.Fatal("#UD")
		}
		want := synic.Registers{RAX: 0, RDX: 0, RBX: old | 2, RCX: old | 0x42, RSI: 9, RDI: 8, RIP: 0x5000 - 0x10 + synic.TrapDone}
		if r != want || fmt.Sprint(events.flags) != "[2]" {
			t.Errorf("registers %+v, want %+v; flags %v", r, want, events.flags)
		}
		// PostMessage with the input GPA in EBX:ECX.
		in := hv.PostMessageInput{ConnectionID: 0x99, MessageType: 1}
		var b [hv.PostMessageSize]byte
		in.Put(&b)
		if err := g.Memory.WriteAt(b[:], g.VPs[0].InputPage()); err != nil {
			t.Fatal(err)
		}
		r = synic.Registers{RAX: 0x5C, RCX: uint64(g.VPs[0].InputPage()), RIP: 0x5000 - 0x10 + synic.TrapOut}
		if !p.Trap(0, synictest.TrapPort, env, &r) || r.RAX != uint64(hv.StatusInvalidConnectionID) || r.RDX != 0 {
			t.Errorf("PostMessage: registers %+v", r)
		}
	})
	for name, change := range map[string]func(*synic.Environment, *synic.Registers, *uint8){
		"CPL 3":        func(e *synic.Environment, _ *synic.Registers, _ *uint8) { e.CPL = 3 },
		"real mode":    func(e *synic.Environment, _ *synic.Registers, _ *uint8) { e.Protected = false },
		"virtual 8086": func(e *synic.Environment, _ *synic.Registers, _ *uint8) { e.VM86 = true },
		"outside":      func(e *synic.Environment, _ *synic.Registers, _ *uint8) { e.InPage = false },
		"elsewhere":    func(_ *synic.Environment, r *synic.Registers, _ *uint8) { r.RIP = linear + 0x100 },
		"wrong port":   func(_ *synic.Environment, _ *synic.Registers, port *uint8) { *port = synictest.SignalPort },
		"no port":      func(_ *synic.Environment, _ *synic.Registers, port *uint8) { *port = 0x80 },
	} {
		t.Run(name, func(t *testing.T) {
			env, port := legal, uint8(synictest.TrapPort)
			r := synic.Registers{RCX: 0x1005D, RDX: 0x42, RIP: linear + synic.TrapOut}
			change(&env, &r, &port)
			want := r
			events.flags = nil
			if p.Trap(0, port, env, &r) || r != want || len(events.flags) != 0 {
				t.Errorf("no #UD: registers %+v", r)
			}
		})
	}
}

func TestInHypercallPage(t *testing.T) {
	g := synictest.New(t, 1, nil)
	p, v := g.Partition, g.VPs[0]
	if p.InHypercallPage(0) {
		t.Error("in a page that is not enabled")
	}
	v.BringUp(2)
	base, enabled := p.HypercallPage()
	if !enabled || !p.InHypercallPage(base) || !p.InHypercallPage(base+4095) || p.InHypercallPage(base-1) || p.InHypercallPage(base+4096) {
		t.Errorf("page at %v, enabled %v", base, enabled)
	}
	want := synic.HypercallPage(synictest.TrapPort, synictest.SignalPort)
	var got [guest.PageSize]byte
	if err := g.Memory.ReadAt(got[:], base); err != nil || got != want {
		t.Errorf("RAM does not hold the page (%v)", err)
	}
	v.Write(hv.MSRGuestOSID, 0)
	if p.InHypercallPage(base) {
		t.Error("GUEST_OS_ID 0 leaves the page enabled")
	}
}
