package synic_test

import (
	"fmt"
	"testing"

	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

// Two guests of one hypervisor: one posts and signals to a port of the other.
func twoGuests(t *testing.T) (from, to *synictest.Guest) {
	h := synic.NewHypervisor()
	from, to = synictest.NewIn(t, h, 1, nil), synictest.NewIn(t, h, 2, nil)
	if from.Partition.ID() == to.Partition.ID() {
		t.Fatal("two partitions with one id")
	}
	from.BringUp(2)
	return from, to
}

func TestGuestToGuestMessage(t *testing.T) {
	from, to := twoGuests(t)
	port := synic.NewGuestMessagePort(to.Partition, 0x77, 5, 1)
	if err := from.Partition.ConnectGuestPort(1, port); err != nil {
		t.Fatal(err)
	}
	expect := func(what string, want hv.Status) {
		t.Helper()
		if st := from.VPs[0].PostMessage(1, 9, []byte("x")); st != want {
			t.Errorf("%s: %v, want %v", what, st, want)
		}
	}
	expect("target's SynIC is off", hv.StatusInvalidSynICState)
	to.BringUp(5)
	expect("success", 0)
	if m, ok := to.VPs[1].TakeMessage(5); !ok || m.Type != 9 || m.Origin != 0x77 || string(m.Bytes()) != "x" {
		t.Errorf("message %+v", m)
	}
	for range 1 + synic.PortBuffers {
		expect("filling up", 0)
	}
	expect("full", hv.StatusInsufficientBuffers)
	if st := from.VPs[0].SignalEvent(1, 0); st != hv.StatusInvalidPortID {
		t.Errorf("a signal to a message port: %v", st)
	}
	port.Delete()
	expect("deleted port", hv.StatusInvalidPortID)
	// The message in the slot stays, the queued ones are gone.
	if _, ok := to.VPs[1].TakeMessage(5); !ok {
		t.Error("the slot was emptied")
	}
	if _, ok := to.VPs[1].TakeMessage(5); ok {
		t.Error("a message of a deleted port")
	}
}

func TestGuestToGuestVP(t *testing.T) {
	from, to := twoGuests(t)
	for id, vp := range map[hv.ConnectionID]hv.VPIndex{1: 2, 2: hv.VPAny} {
		if err := from.Partition.ConnectGuestPort(id, synic.NewGuestMessagePort(to.Partition, 1, 5, vp)); err != nil {
			t.Fatal(err)
		}
		if st := from.VPs[0].PostMessage(id, 1, nil); st != hv.StatusInvalidVPIndex {
			t.Errorf("VP %#x: %v", vp, st)
		}
	}
	to.VPs[1].BringUp(5)
	for range 3 {
		if st := from.VPs[0].PostMessage(2, 1, nil); st != hv.StatusSuccess {
			t.Fatal(st)
		}
		if _, ok := to.VPs[1].TakeMessage(5); !ok {
			t.Error("no message on the only VP that is ready")
		}
	}
}

func TestGuestToGuestEvent(t *testing.T) {
	from, to := twoGuests(t)
	port := synic.NewGuestEventPort(to.Partition, 1, 5, 0, 100, 8)
	if err := from.Partition.ConnectGuestPort(1, port); err != nil {
		t.Fatal(err)
	}
	expect := func(what string, flag uint16, want hv.Status) {
		t.Helper()
		if st := from.VPs[0].SignalEvent(1, flag); st != want {
			t.Errorf("%s: %v, want %v", what, st, want)
		}
	}
	expect("target's SynIC is off", 0, hv.StatusInvalidSynICState)
	to.BringUp(5)
	expect("first", 0, 0)
	expect("last", 7, 0)
	expect("one too many", 8, hv.StatusInvalidParameter)
	if f := to.VPs[0].TakeEvents(5); fmt.Sprint(f) != "[100 107]" {
		t.Errorf("flags %v", f)
	}
	to.VPs[0].Write(hv.MSRSINT(5), 0x10000)
	expect("masked", 0, hv.StatusInvalidSynICState)
	if st := from.VPs[0].PostMessage(1, 1, nil); st != hv.StatusInvalidPortID {
		t.Errorf("a message to an event port: %v", st)
	}
}

// The owner of the port goes away; the connection stays and says so.
func TestGuestToGuestOwnerGone(t *testing.T) {
	from, to := twoGuests(t)
	to.BringUp(5)
	messages := synic.NewGuestMessagePort(to.Partition, 1, 5, 0)
	events := synic.NewGuestEventPort(to.Partition, 2, 5, 0, 0, 1)
	for id, port := range map[hv.ConnectionID]synic.GuestPort{1: messages, 2: events} {
		if err := from.Partition.ConnectGuestPort(id, port); err != nil {
			t.Fatal(err)
		}
	}
	to.Partition.Close()
	if st := from.VPs[0].PostMessage(1, 1, nil); st != hv.StatusInvalidPortID {
		t.Errorf("post: %v", st)
	}
	if st := from.VPs[0].SignalEvent(2, 0); st != hv.StatusInvalidPortID {
		t.Errorf("signal: %v", st)
	}
}
