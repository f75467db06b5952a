package synic_test

import (
	"fmt"
	"testing"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

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

// OpenVMM's #2303: the length of the text is whatever the guest says.
func TestRegressRow17_CrashLength(t *testing.T) {
	var got crashes
	g := synictest.New(t, 1, func(c *synic.Config) { c.OnCrash = func(r synic.CrashReport) { got = append(got, r) } })
	for _, c := range []struct {
		gpa, length uint64
		want        int
	}{
		{0x3000, ones, hv.CrashMessageMax},
		{0x3000, hv.CrashMessageMax + 1, hv.CrashMessageMax},
		{0x3800, 1 << 40, hv.CrashMessageMax},
		{0x3000, 0, 0},
		{synictest.RAMSize - 10, ones, 10},
		{synictest.RAMSize, 100, 0},
		{ones, ones, 0},
		{ones - 4095, 4096, 0},
	} {
		got = nil
		g.VPs[0].Write(hv.MSRCrashP0+3, c.gpa)
		g.VPs[0].Write(hv.MSRCrashP0+4, c.length)
		g.VPs[0].Write(hv.MSRCrashCtl, hv.CrashNotify|hv.CrashMessage)
		if len(got) != 1 || len(got[0].Message) != c.want || cap(got[0].Message) > hv.CrashMessageMax {
			t.Errorf("%d bytes at %#x: %d reports, text of %d", c.length, c.gpa, len(got), len(got[0].Message))
		}
	}
}
