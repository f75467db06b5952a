package synic_test

import (
	"fmt"
	"testing"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

func message(n int) hv.Message {
	return hv.NewMessage(1, []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
}

func number(m hv.Message) int {
	return int(m.Payload[0]) | int(m.Payload[1])<<8 | int(m.Payload[2])<<16 | int(m.Payload[3])<<24
}

func expectInterrupts(t *testing.T, v *synictest.VP, want uint64) {
	t.Helper()
	if n, _ := v.Interrupts(); n != want {
		t.Errorf("%d interrupts, want %d", n, want)
	}
}

func TestDeliver(t *testing.T) {
	g := synictest.New(t, 2, nil)
	g.BringUp(2)
	v := g.VPs[1]
	port := g.Partition.OpenMessagePort(0xABCDEF, 2, nil)
	m := hv.NewMessage(7, []byte("hello"))
	m.Payload[6] = 0xFF // beyond the size: must not reach the guest
	if st := port.Post(1, m); st != hv.StatusSuccess {
		t.Fatal(st)
	}
	expectInterrupts(t, v, 1)
	expectInterrupts(t, g.VPs[0], 0)
	var b [hv.SlotSize]byte
	if err := g.Memory.ReadAt(b[:], v.SIM()+2*hv.SlotSize); err != nil {
		t.Fatal(err)
	}
	want := [hv.SlotSize]byte{0: 7, 4: 5, 8: 0xEF, 9: 0xCD, 10: 0xAB, 16: 'h', 17: 'e', 18: 'l', 19: 'l', 20: 'o'}
	if b != want {
		t.Errorf("slot % x", b[:32])
	}
}

// A busy slot: MessagePending is set, nothing interrupts, and each EOM brings
// the next message, in order.
func TestDeliverBusySlot(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(2)
	v := g.VPs[0]
	port := g.Partition.OpenMessagePort(1, 2, nil)
	port.Post(0, message(0))
	if _, pending, ok := g.PeekMessage(v.SIM(), 2); !ok || pending {
		t.Errorf("alone: pending %v", pending)
	}
	for n := 1; n <= 3; n++ {
		port.Post(0, message(n))
	}
	expectInterrupts(t, v, 1)
	for n := range 4 {
		m, pending, ok := g.PeekMessage(v.SIM(), 2)
		if !ok || number(m) != n || pending != (n < 3) {
			t.Fatalf("slot has message %d, pending %v; want %d", number(m), pending, n)
		}
		if m, ok := v.TakeMessage(2); !ok || number(m) != n {
			t.Fatalf("took %d, want %d", number(m), n)
		}
	}
	if _, ok := v.TakeMessage(2); ok {
		t.Error("a fifth message")
	}
	expectInterrupts(t, v, 4)
	v.Write(hv.MSREOM, 1) // nothing to do
	expectInterrupts(t, v, 4)
}

// slotWord is a word of a slot, with something that happens when it is changed.
type slotWord struct {
	val  uint32
	onOr func()
}

func (w *slotWord) Load() uint32 { return w.val }

func (w *slotWord) Or(mask uint32) uint32 {
	old := w.val
	if w.onOr != nil {
		w.onOr()
	}
	w.val |= mask
	return old
}

// The guest empties the slot and looks for MessagePending just before the host
// sets it: no EOM will come, so the host must see that the slot is empty.
func TestSlotFreeRace(t *testing.T) {
	for name, c := range map[string]struct {
		typ, after   uint32
		free, asking bool
	}{
		"empty":          {0, 0, true, false},
		"busy":           {1, 1, false, true},
		"emptied by now": {1, 0, true, true},
	} {
		typ, header := &slotWord{val: c.typ}, &slotWord{val: 5}
		header.onOr = func() { typ.val = c.after }
		if free := synic.SlotFree(typ, header); free != c.free {
			t.Errorf("%s: free %v", name, free)
		}
		if asking := header.val == 5|hv.SlotPending; asking != c.asking {
			t.Errorf("%s: header %#x", name, header.val)
		}
	}
}

// One EOM serves all slots.
func TestEOMScansAllSINTs(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(1)
	v := g.VPs[0]
	for s := uint8(1); s < hv.SINTCount; s++ {
		v.Write(hv.MSRSINT(s), 0x20+uint64(s))
		port := g.Partition.OpenMessagePort(hv.PortID(s), s, nil)
		port.Post(0, message(1))
		port.Post(0, message(2))
	}
	for s := uint8(1); s < hv.SINTCount; s++ {
		w, err := g.Memory.Word(v.SIM() + guest.GPA(hv.SlotOffset(s)))
		if err != nil {
			t.Fatal(err)
		}
		w.Store(0)
	}
	expectInterrupts(t, v, 15)
	v.Write(hv.MSREOM, 0)
	expectInterrupts(t, v, 30)
	for s := uint8(1); s < hv.SINTCount; s++ {
		if m, _, ok := g.PeekMessage(v.SIM(), s); !ok || number(m) != 2 || m.Origin != uint64(s) {
			t.Errorf("SINT %d has message %d", s, number(m))
		}
	}
}

// A message that is posted later takes those before it along, even if the
// guest wrote no EOM.
func TestPostRescans(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(2)
	v := g.VPs[0]
	a, b := g.Partition.OpenMessagePort(1, 2, nil), g.Partition.OpenMessagePort(2, 2, nil)
	a.Post(0, message(0))
	a.Post(0, message(1))
	w, err := g.Memory.Word(v.SIM() + guest.GPA(hv.SlotOffset(2)))
	if err != nil {
		t.Fatal(err)
	}
	w.Store(0)
	b.Post(0, message(2))
	for n := 1; n <= 2; n++ {
		if m, ok := v.TakeMessage(2); !ok || number(m) != n {
			t.Fatalf("took %d, want %d", number(m), n)
		}
	}
}

func TestSINTModes(t *testing.T) {
	for name, c := range map[string]struct {
		sint       uint64
		interrupts uint64
		auto       uint64
		event      hv.Status
	}{
		"plain":    {0xF3, 2, 0, 0},
		"masked":   {0x100F3, 0, 0, hv.StatusInvalidSynICState},
		"polling":  {0x400F3, 0, 0, 0},
		"auto EOI": {0x200F3, 2, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			g := synictest.New(t, 1, nil)
			g.BringUp(2)
			v := g.VPs[0]
			v.Write(hv.MSRSINT(2), c.sint)
			if st := g.Partition.OpenMessagePort(1, 2, nil).Post(0, message(1)); st != hv.StatusSuccess {
				t.Errorf("post: %v", st)
			}
			if m, ok := v.TakeMessage(2); !ok || number(m) != 1 {
				t.Error("no message in the slot")
			}
			if st := g.Partition.SignalEvent(0, 2, 5); st != c.event {
				t.Errorf("signal: %v, want %v", st, c.event)
			}
			if f := v.TakeEvents(2); len(f) == 1 != (c.event == 0) {
				t.Errorf("flags %v", f)
			}
			total, auto := v.Interrupts()
			if total != c.interrupts || auto != c.auto {
				t.Errorf("%d interrupts, %d of them AutoEOI; want %d, %d", total, auto, c.interrupts, c.auto)
			}
		})
	}
}

type failing struct{}

func (failing) Interrupt(hv.VPIndex, uint8) error { return fmt.Errorf("no such VP") }

// The log of something a guest can repeat is bounded.
func TestInterruptErrorIsLogged(t *testing.T) {
	lines := 0
	g := synictest.New(t, 1, func(c *synic.Config) {
		c.Interrupts = failing{}
		c.Logf = func(string, ...any) { lines++ }
	})
	g.BringUp(2)
	for range 1000 {
		if st := g.Partition.SignalEvent(0, 2, 1); st != hv.StatusSuccess {
			t.Fatal(st)
		}
		g.VPs[0].TakeEvents(2)
	}
	if lines == 0 || lines > 100 {
		t.Errorf("%d lines for 1000 errors", lines)
	}
}

func TestPostStatus(t *testing.T) {
	g := synictest.New(t, 2, nil)
	p, v := g.Partition, g.VPs[0]
	port := p.OpenMessagePort(1, 2, nil)
	expect := func(what string, vp hv.VPIndex, want hv.Status) {
		t.Helper()
		if st := port.Post(vp, message(1)); st != want {
			t.Errorf("%s: %v, want %v", what, st, want)
		}
		v.TakeMessage(2)
	}
	expect("SynIC never set up", 0, hv.StatusInvalidSynICState)
	expect("any, none set up", hv.VPAny, hv.StatusInvalidVPIndex)
	v.BringUp(2)
	expect("set up", 0, 0)
	expect("the other VP", 1, hv.StatusInvalidSynICState)
	expect("any", hv.VPAny, 0)
	v.Write(hv.MSRSCONTROL, 0)
	expect("SynIC off", 0, hv.StatusInvalidSynICState)
	v.Write(hv.MSRSCONTROL, 1)
	v.Write(hv.MSRSIMP, 0)
	expect("SIMP off", 0, hv.StatusInvalidSynICState)
	expect("any, SIMP off", hv.VPAny, hv.StatusInvalidVPIndex)
	v.Write(hv.MSRSIMP, uint64(v.SIM())|1)
	expect("on again", 0, 0)
	for _, m := range []hv.Message{{Type: 0}, {Type: 1 << 31}, {Type: 1, Size: 241}, {Type: 1, Size: 255}} {
		if st := port.Post(0, m); st != hv.StatusInvalidParameter {
			t.Errorf("type %#x, %d bytes: %v", uint32(m.Type), m.Size, st)
		}
	}
	port.Close()
	port.Close()
	expect("closed port", 0, hv.StatusInvalidPortID)
}

// hv.VPAny spreads over the VPs that can take it.
func TestPostAny(t *testing.T) {
	g := synictest.New(t, 4, nil)
	for _, i := range []int{0, 2} {
		g.VPs[i].BringUp(2)
	}
	port := g.Partition.OpenMessagePort(1, 2, nil)
	for range 8 {
		if st := port.Post(hv.VPAny, message(1)); st != hv.StatusSuccess {
			t.Fatal(st)
		}
		if st := g.Partition.SignalEvent(hv.VPAny, 2, 9); st != hv.StatusSuccess {
			t.Fatal(st)
		}
	}
	for i, v := range g.VPs {
		n, _ := v.Interrupts()
		if (n > 0) != (i%2 == 0) {
			t.Errorf("VP %d: %d interrupts", i, n)
		}
	}
}

// A port has 16 buffers; a message in the slot holds none of them. free is
// called once a refused sender can go on.
func TestPortBuffers(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(2)
	v := g.VPs[0]
	freed := 0
	port := g.Partition.OpenMessagePort(1, 2, func() { freed++ })
	for n := range 1 + synic.PortBuffers {
		if st := port.Post(0, message(n)); st != hv.StatusSuccess {
			t.Fatalf("message %d: %v", n, st)
		}
	}
	if st := port.Post(0, message(99)); st != hv.StatusInsufficientBuffers {
		t.Fatalf("one too many: %v", st)
	}
	other := g.Partition.OpenMessagePort(2, 2, func() { t.Error("free of a port that was never full") })
	if st := other.Post(0, message(98)); st != hv.StatusSuccess {
		t.Errorf("another port: %v", st)
	}
	if freed != 0 {
		t.Error("free before there was a buffer")
	}
	v.TakeMessage(2)
	v.TakeMessage(2)
	if freed != 1 {
		t.Errorf("free called %d times", freed)
	}
	if st := port.Post(0, message(1+synic.PortBuffers)); st != hv.StatusSuccess {
		t.Errorf("after free: %v", st)
	}
	var order []int
	for {
		m, ok := v.TakeMessage(2)
		if !ok {
			break
		}
		order = append(order, number(m))
	}
	if fmt.Sprint(order) != "[2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 98 17]" {
		t.Errorf("order %v", order)
	}
	if freed != 1 {
		t.Errorf("free called %d times", freed)
	}
}

// Whatever drops messages makes their buffers usable again.
func TestBuffersComeBack(t *testing.T) {
	for name, drop := range map[string]func(*synictest.Guest){
		"VP reset":        func(g *synictest.Guest) { g.VPs[0].Reset() },
		"partition reset": func(g *synictest.Guest) { g.Partition.Reset() },
	} {
		t.Run(name, func(t *testing.T) {
			g := synictest.New(t, 1, nil)
			g.BringUp(2)
			freed := 0
			port := g.Partition.OpenMessagePort(1, 2, func() { freed++ })
			for round := range 3 {
				for n := range 1 + synic.PortBuffers {
					if st := port.Post(0, message(n)); st != hv.StatusSuccess {
						t.Fatalf("round %d, message %d: %v", round, n, st)
					}
				}
				if st := port.Post(0, message(0)); st != hv.StatusInsufficientBuffers {
					t.Fatal(st)
				}
				drop(g)
				if freed != round+1 {
					t.Errorf("round %d: free called %d times", round, freed)
				}
				g.BringUp(2)
				if m, ok := g.VPs[0].TakeMessage(2); ok {
					t.Errorf("message %d survived", number(m))
				}
			}
		})
	}
}

// Closing a port drops its queued messages, not those of others and not the
// one in the slot.
func TestClosePort(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(2)
	a, b := g.Partition.OpenMessagePort(1, 2, nil), g.Partition.OpenMessagePort(2, 2, nil)
	a.Post(0, message(0))
	for n := 1; n < 9; n += 2 {
		a.Post(0, message(n))
		b.Post(0, message(n+1))
	}
	a.Close()
	for _, want := range []int{0, 2, 4, 6, 8} {
		if m, ok := g.VPs[0].TakeMessage(2); !ok || number(m) != want {
			t.Errorf("took %d (%v), want %d", number(m), ok, want)
		}
	}
	if _, ok := g.VPs[0].TakeMessage(2); ok {
		t.Error("more than expected")
	}
}

// Messages that were queued when the SynIC went off arrive when it is back, by
// themselves: the guest may have emptied the slot in between.
func TestDeliverAfterSwitchOn(t *testing.T) {
	for name, c := range map[string]struct{ off, on func(*synictest.VP) }{
		"SIMP": {
			func(v *synictest.VP) { v.Write(hv.MSRSIMP, 0) },
			func(v *synictest.VP) { v.Write(hv.MSRSIMP, uint64(v.SIM())|1) },
		},
		"SCONTROL": {
			func(v *synictest.VP) { v.Write(hv.MSRSCONTROL, 0) },
			func(v *synictest.VP) { v.Write(hv.MSRSCONTROL, 1) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := synictest.New(t, 1, nil)
			g.BringUp(2)
			v := g.VPs[0]
			port := g.Partition.OpenMessagePort(1, 2, nil)
			port.Post(0, message(1))
			port.Post(0, message(2))
			w, err := g.Memory.Word(v.SIM() + guest.GPA(hv.SlotOffset(2)))
			if err != nil {
				t.Fatal(err)
			}
			w.Store(0)
			c.off(v)
			v.Write(hv.MSREOM, 0)
			expectInterrupts(t, v, 1)
			c.on(v)
			expectInterrupts(t, v, 2)
			if m, ok := v.TakeMessage(2); !ok || number(m) != 2 {
				t.Errorf("took %d (%v)", number(m), ok)
			}
		})
	}
}

// With the message page outside RAM messages are accepted and kept, and are
// there when the page comes to RAM.
func TestDeliverOutsideRAM(t *testing.T) {
	g := synictest.New(t, 1, nil)
	v := g.VPs[0]
	v.BringUp(2)
	v.Write(hv.MSRSIMP, 1<<39|1)
	port := g.Partition.OpenMessagePort(1, 2, nil)
	for n := range 3 {
		if st := port.Post(0, message(n)); st != hv.StatusSuccess {
			t.Fatal(st)
		}
	}
	expectInterrupts(t, v, 1)
	v.Write(hv.MSRSIMP, uint64(v.SIM())|1)
	for n := range 3 {
		if m, ok := v.TakeMessage(2); !ok || number(m) != n {
			t.Errorf("took %d (%v), want %d", number(m), ok, n)
		}
	}
}

func TestSignalEventStatus(t *testing.T) {
	g := synictest.New(t, 2, nil)
	p, v := g.Partition, g.VPs[0]
	expect := func(what string, vp hv.VPIndex, sint uint8, flag uint16, want hv.Status) {
		t.Helper()
		if st := p.SignalEvent(vp, sint, flag); st != want {
			t.Errorf("%s: %v, want %v", what, st, want)
		}
	}
	expect("nothing set up", 0, 2, 0, hv.StatusInvalidSynICState)
	expect("any, nothing set up", hv.VPAny, 2, 0, hv.StatusInvalidVPIndex)
	v.BringUp(2)
	expect("first flag", 0, 2, 0, 0)
	expect("again", 0, 2, 0, 0)
	expectInterrupts(t, v, 1)
	expect("last flag", 0, 2, 2047, 0)
	expectInterrupts(t, v, 2)
	if f := v.TakeEvents(2); fmt.Sprint(f) != "[0 2047]" {
		t.Errorf("flags %v", f)
	}
	expect("after taking", 0, 2, 0, 0)
	expectInterrupts(t, v, 3)
	v.Write(hv.MSRSIEFP, 0)
	expect("SIEFP off", 0, 2, 1, hv.StatusInvalidSynICState)
	v.Write(hv.MSRSIEFP, uint64(v.SIEF())|1)
	v.Write(hv.MSRSCONTROL, 0)
	expect("SynIC off", 0, 2, 1, hv.StatusInvalidSynICState)
}
