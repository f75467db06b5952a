package synic_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

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

// OpenVMM's #3686 and QEMU's off by one: SINT and flag numbers at and beyond
// their limits.
func TestRegressRow01_SINTAndFlagRange(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(15)
	for _, c := range []struct {
		sint uint8
		flag uint16
	}{{16, 0}, {255, 0}, {0, 0}, {15, 2048}, {15, 65535}, {16, 2048}} {
		if st := g.Partition.SignalEvent(0, c.sint, c.flag); st != hv.StatusInvalidParameter {
			t.Errorf("SINT %d flag %d: %v", c.sint, c.flag, st)
		}
	}
	for _, sint := range []uint8{0, 16, 17, 255} {
		port := g.Partition.OpenMessagePort(1, sint, nil)
		if st := port.Post(0, message(1)); st != hv.StatusInvalidParameter {
			t.Errorf("post to SINT %d: %v", sint, st)
		}
		port.Close()
	}
	if st := g.Partition.SignalEvent(0, 15, 2047); st != hv.StatusSuccess {
		t.Errorf("the last flag of the last SINT: %v", st)
	}
	if f := g.VPs[0].TakeEvents(15); fmt.Sprint(f) != "[2047]" {
		t.Errorf("flags %v", f)
	}
}

// OpenVMM's #2731: the guest names the VP that it wants messages on.
func TestRegressRow02_TargetVP(t *testing.T) {
	g := synictest.New(t, 2, nil)
	g.BringUp(2)
	port := g.Partition.OpenMessagePort(1, 2, nil)
	for _, vp := range []hv.VPIndex{2, 63, 64, 1 << 16, 1 << 31, 0xFFFFFFFE} {
		if st := port.Post(vp, message(1)); st != hv.StatusInvalidVPIndex {
			t.Errorf("post to VP %d: %v", vp, st)
		}
		if st := g.Partition.SignalEvent(vp, 2, 0); st != hv.StatusInvalidVPIndex {
			t.Errorf("signal to VP %d: %v", vp, st)
		}
		if g.Partition.VP(vp) != nil {
			t.Errorf("there is a VP %d", vp)
		}
	}
	// None of them cost a buffer.
	for n := range 1 + synic.PortBuffers {
		if st := port.Post(1, message(n)); st != hv.StatusSuccess {
			t.Errorf("message %d: %v", n, st)
		}
	}
}

// OpenVMM's #3720: what was in the RAM under a message page that is switched on
// must not look like a message.
func TestRegressRow05_StaleMessagePage(t *testing.T) {
	g := synictest.New(t, 1, nil)
	v := g.VPs[0]
	stale := make([]byte, 2*guest.PageSize)
	for i := range stale {
		stale[i] = 0xA5
	}
	if err := g.Memory.WriteAt(stale, v.SIM()); err != nil { // SIEF follows
		t.Fatal(err)
	}
	v.BringUp(2)
	port := g.Partition.OpenMessagePort(1, 2, nil)
	if st := port.Post(0, message(7)); st != hv.StatusSuccess {
		t.Fatal(st)
	}
	if st := g.Partition.SignalEvent(0, 2, 0); st != hv.StatusSuccess {
		t.Fatal(st)
	}
	expectInterrupts(t, v, 2)
	if m, ok := v.TakeMessage(2); !ok || number(m) != 7 {
		t.Errorf("took %d (%v)", number(m), ok)
	}
	// The same after a reset, with the old content of the page.
	port.Post(0, message(8))
	v.Reset()
	v.BringUp(2)
	if _, ok := v.TakeMessage(2); ok {
		t.Error("a message from before the reset")
	}
	port.Post(0, message(9))
	if m, ok := v.TakeMessage(2); !ok || number(m) != 9 {
		t.Errorf("took %d (%v)", number(m), ok)
	}
}

// OpenVMM's #3819: a queue that is filled again while its slot is busy needs
// its pending flag again.
func TestRegressRow10_RefilledQueue(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(2)
	v := g.VPs[0]
	port := g.Partition.OpenMessagePort(1, 2, nil)
	next, want := 0, 0
	for round := range 50 {
		for range 1 + round%5 {
			if st := port.Post(0, message(next)); st != hv.StatusSuccess {
				t.Fatal(st)
			}
			next++
		}
		_, pending, _ := g.PeekMessage(v.SIM(), 2)
		if pending != (next-want > 1) {
			t.Fatalf("round %d: pending %v with %d messages", round, pending, next-want)
		}
		for want < next-round%2 { // every other round leaves one in the slot
			m, ok := v.TakeMessage(2)
			if !ok || number(m) != want {
				t.Fatalf("round %d: took %d (%v), want %d", round, number(m), ok, want)
			}
			want++
		}
	}
}

// QEMU's hyperv.c: event number 2048 itself got through; a VP from the guest's
// INITIATE_CONTACT reached an assertion.
func TestRegressRow20_LimitsThemselves(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(2)
	if st := g.Partition.SignalEvent(0, 2, hv.EventFlagCount); st != hv.StatusInvalidParameter {
		t.Errorf("flag %d: %v", hv.EventFlagCount, st)
	}
	if st := g.Partition.SignalEvent(1, 2, 0); st != hv.StatusInvalidVPIndex {
		t.Errorf("VP 1 of 1: %v", st)
	}
	if err := g.Partition.ConnectEvent(1, hv.EventFlagCount, &countingEvents{}); err != nil {
		t.Fatal(err)
	}
	if st := g.VPs[0].SignalEvent(1, hv.EventFlagCount); st != hv.StatusInvalidParameter {
		t.Errorf("hypercall with flag %d: %v", hv.EventFlagCount, st)
	}
	if st := g.VPs[0].SignalEvent(1, hv.EventFlagCount-1); st != hv.StatusSuccess {
		t.Errorf("hypercall with the last flag: %v", st)
	}
}

// queueModel is what the SIM of one VP should look like.
type queueModel struct {
	on, simp bool
	at       guest.GPA
	masked   [4]bool
	slot     [4][]int // at most one
	pending  [4]bool
	queue    [4][]int
	port     map[int]int // message number to port
	raised   uint64
}

func (m *queueModel) deliver(s int) {
	if len(m.queue[s]) == 0 || !m.on || !m.simp {
		return
	}
	if len(m.slot[s]) > 0 {
		m.pending[s] = true
		return
	}
	m.slot[s], m.queue[s] = m.queue[s][:1:1], m.queue[s][1:]
	m.pending[s] = len(m.queue[s]) > 0
	if !m.masked[s] {
		m.raised++
	}
}

func (m *queueModel) used(port int) (n int) {
	for _, q := range m.queue {
		for _, x := range q {
			if m.port[x] == port {
				n++
			}
		}
	}
	return n
}

// Random posts, EOMs, moves, masks, port closures and resets, against a model.
func TestMessageQueueModel(t *testing.T) {
	bases := []guest.GPA{0x200000, 0x201000, 1 << 38} // the last is not RAM
	rapid.Check(t, func(rt *rapid.T) {
		g := synictest.New(t, 1, nil)
		defer g.Close()
		v := g.VPs[0]
		m := &queueModel{port: map[int]int{}}
		var ports [3]*synic.SendPort
		open := func(i int) { ports[i] = g.Partition.OpenMessagePort(hv.PortID(i), uint8(1+i%2), nil) }
		for i := range ports {
			open(i)
		}
		reset := func() {
			*m = queueModel{port: m.port, raised: m.raised}
			for s := range m.masked {
				m.masked[s] = true
			}
		}
		reset()
		posted := 0
		sint := rapid.IntRange(1, 2)
		rt.Repeat(map[string]func(*rapid.T){
			"post": func(rt *rapid.T) {
				i := rapid.IntRange(0, len(ports)-1).Draw(rt, "port")
				s := 1 + i%2
				want := hv.StatusSuccess
				switch {
				case m.used(i) == synic.PortBuffers:
					want = hv.StatusInsufficientBuffers
				case !m.on || !m.simp:
					want = hv.StatusInvalidSynICState
				}
				if st := ports[i].Post(0, message(posted)); st != want {
					rt.Fatalf("post: %v, want %v", st, want)
				}
				if want == hv.StatusSuccess {
					m.queue[s] = append(m.queue[s], posted)
					m.port[posted] = i
					m.deliver(s)
				}
				posted++
			},
			"take": func(rt *rapid.T) {
				s := sint.Draw(rt, "sint")
				if !m.simp || m.at == bases[2] {
					return
				}
				got, ok := v.TakeMessageAt(m.at, uint8(s))
				if ok != (len(m.slot[s]) == 1) || ok && number(got) != m.slot[s][0] {
					rt.Fatalf("took %d (%v), model has %v", number(got), ok, m.slot[s])
				}
				m.slot[s] = nil
				if ok && m.pending[s] {
					for s := range m.queue {
						m.deliver(s)
					}
				}
			},
			"EOM": func(*rapid.T) {
				v.Write(hv.MSREOM, 0)
				for s := range m.queue {
					m.deliver(s)
				}
			},
			"SIMP": func(rt *rapid.T) {
				m.simp = rapid.Bool().Draw(rt, "enable")
				m.at = rapid.SampledFrom(bases).Draw(rt, "base")
				v.Write(hv.MSRSIMP, uint64(hv.MakePageRegister(m.at, m.simp)))
				for s := range m.queue {
					m.deliver(s)
				}
			},
			"SCONTROL": func(rt *rapid.T) {
				m.on = rapid.Bool().Draw(rt, "enable")
				val := uint64(0)
				if m.on {
					val = 1
				}
				v.Write(hv.MSRSCONTROL, val)
				for s := range m.queue {
					m.deliver(s)
				}
			},
			"SINT": func(rt *rapid.T) {
				s := sint.Draw(rt, "sint")
				m.masked[s] = rapid.Bool().Draw(rt, "masked")
				val := uint64(0xF3)
				if m.masked[s] {
					val |= 1 << 16
				}
				v.Write(hv.MSRSINT(uint8(s)), val)
			},
			"close": func(rt *rapid.T) {
				i := rapid.IntRange(0, len(ports)-1).Draw(rt, "port")
				ports[i].Close()
				for s, q := range m.queue {
					var kept []int
					for _, x := range q {
						if m.port[x] != i {
							kept = append(kept, x)
						}
					}
					m.queue[s] = kept
				}
				open(i)
			},
			"reset": func(rt *rapid.T) {
				if rapid.IntRange(0, 9).Draw(rt, "really") == 0 {
					v.Reset()
					reset()
				}
			},
			"": func(rt *rapid.T) {
				if n, _ := v.Interrupts(); n != m.raised {
					rt.Fatalf("%d interrupts, want %d", n, m.raised)
				}
				if !m.simp || m.at == bases[2] {
					return
				}
				for s := 1; s <= 2; s++ {
					got, pending, ok := g.PeekMessage(m.at, uint8(s))
					if ok != (len(m.slot[s]) == 1) || ok && (number(got) != m.slot[s][0] || pending != m.pending[s]) {
						rt.Fatalf("SINT %d: message %d (%v) pending %v; model has %v, pending %v", s, number(got), ok, pending, m.slot[s], m.pending[s])
					}
				}
			},
		})
	})
}
