package synic_test

import (
	"math"
	"math/bits"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

func TestTSCPage(t *testing.T) {
	g := synictest.New(t, 1, nil)
	v := g.VPs[0]
	v.BringUp(2)
	scale, _ := hv.TSCScale(synictest.TSCHz)
	r := g.ReferenceTSC()
	if r.Sequence != 1 || r.Scale != scale {
		t.Errorf("page %+v", r)
	}
	for _, d := range []uint64{0, 1, 1000, 1 << 30, 1 << 50} {
		g.Clock.Advance(d)
		page, counter := r.Time(g.Clock.TSC()), v.Read(hv.MSRTimeRefCount)
		if page > counter || counter-page > 1 {
			t.Errorf("page says %d, counter %d", page, counter)
		}
	}
	// Again: a new sequence. 0 and all ones are not sequences.
	v.Write(hv.MSRReferenceTSC, v.Read(hv.MSRReferenceTSC))
	if r := g.ReferenceTSC(); r.Sequence != 2 {
		t.Errorf("sequence %d", r.Sequence)
	}
	g.Partition.SetTSCSequence(math.MaxUint32 - 1)
	g.Partition.RefreshReferenceTSC()
	if r := g.ReferenceTSC(); r.Sequence != 1 || r.Scale != scale {
		t.Errorf("page %+v after the last sequence", r)
	}
	v.Write(hv.MSRReferenceTSC, 0)
	g.Partition.RefreshReferenceTSC() // not enabled: nothing to do
	if r := g.ReferenceTSC(); r != (hv.ReferenceTSC{}) {
		t.Errorf("page %+v when disabled", r)
	}
}

// A page that was refreshed is the refreshed one when it comes out from under
// another, whether it was in sight then or not.
func TestTSCPageCovered(t *testing.T) {
	g := synictest.New(t, 1, nil)
	v := g.VPs[0]
	v.BringUp(2)
	cover := func(on bool) {
		v.Write(hv.MSRVPAssistPage, uint64(hv.MakePageRegister(g.Partition.TSCPage(), on)))
	}
	g.Partition.RefreshReferenceTSC()
	cover(true)
	if r := g.ReferenceTSC(); r.Sequence != 0 {
		t.Errorf("sequence %d in the page on top", r.Sequence)
	}
	cover(false)
	if r := g.ReferenceTSC(); r.Sequence != 2 {
		t.Errorf("sequence %d, want 2", r.Sequence)
	}
	cover(true)
	g.Partition.RefreshReferenceTSC()
	if r := g.ReferenceTSC(); r.Sequence != 0 {
		t.Errorf("the refresh shows through: sequence %d", r.Sequence)
	}
	cover(false)
	if r := g.ReferenceTSC(); r.Sequence != 3 {
		t.Errorf("sequence %d, want 3", r.Sequence)
	}
}

// Linux enables the page long before it says who it is.
func TestTSCPageBeforeOSID(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.VPs[0].Write(hv.MSRReferenceTSC, 0x20001)
	w, err := g.Memory.Word(0x20000)
	if err != nil {
		t.Fatal(err)
	}
	if w.Load() != 1 {
		t.Errorf("sequence %d", w.Load())
	}
}

// slowClock has a TSC that the page cannot express.
type slowClock struct{ *synictest.Clock }

func (slowClock) TSCHz() uint64 { return hv.ReferenceHz }

func TestTSCPageImpossible(t *testing.T) {
	g := synictest.New(t, 1, func(c *synic.Config) { c.Clock = slowClock{c.Clock.(*synictest.Clock)} })
	g.VPs[0].BringUp(2)
	if r := g.ReferenceTSC(); r != (hv.ReferenceTSC{}) {
		t.Errorf("page %+v, want sequence 0", r)
	}
}

// With a TSCClock, a counter value lies between the values of the page read
// before and after it.
func TestTSCClockAgrees(t *testing.T) {
	start := time.Now()
	const hz = 2_345_678_901
	tsc := func() uint64 {
		hi, lo := bits.Mul64(uint64(time.Since(start)), hz)
		q, _ := bits.Div64(hi, lo, 1e9)
		return 1<<40 + q
	}
	clock, ok := synic.NewTSCClock(hz, 1e9, tsc)
	if !ok {
		t.Fatal("no clock")
	}
	g := synictest.New(t, 1, func(c *synic.Config) { c.Clock = clock })
	v := g.VPs[0]
	v.BringUp(2)
	for range 3 {
		r := g.ReferenceTSC()
		if r.Sequence == 0 {
			t.Fatal("invalid page")
		}
		for range 10000 {
			before := r.Time(tsc())
			counter := v.Read(hv.MSRTimeRefCount)
			after := r.Time(tsc())
			if before > counter || counter > after {
				t.Fatalf("page %d, counter %d, page %d", before, counter, after)
			}
		}
		clock.Pause()
		stopped := clock.Now()
		time.Sleep(time.Millisecond)
		if clock.Now() != stopped {
			t.Error("time goes on while paused")
		}
		clock.Resume()
		if now := clock.Now(); now < stopped || now > stopped+hv.ReferenceHz {
			t.Errorf("resumed at %d, had stopped at %d", now, stopped)
		}
		g.Partition.RefreshReferenceTSC()
	}
	if f, a := v.Read(hv.MSRTSCFrequency), v.Read(hv.MSRAPICFrequency); f != hz || a != 1e9 {
		t.Errorf("frequencies %d, %d", f, a)
	}
	if _, ok := synic.NewTSCClock(hv.ReferenceHz, 1, tsc); ok {
		t.Error("a clock on a TSC of 10 MHz")
	}
}

// TSCAt is the first TSC value at which Now reaches a time.
func TestTSCAt(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		hz := rapid.Uint64Range(hv.ReferenceHz+1, 1<<36).Draw(rt, "hz")
		now := rapid.Uint64Range(0, 1<<50).Draw(rt, "start")
		clock, ok := synic.NewTSCClock(hz, 1, func() uint64 { return now })
		if !ok {
			rt.Fatal("no clock")
		}
		want := rapid.Uint64Range(0, 1<<45).Draw(rt, "time")
		at := clock.TSCAt(want)
		if at == math.MaxUint64 {
			return
		}
		start := now
		if now = at; clock.Now() < want {
			rt.Fatalf("at TSC %d it is %d, not yet %d", at, clock.Now(), want)
		}
		if now = at - 1; at > start && clock.Now() >= want && want > 0 {
			rt.Fatalf("at TSC %d it is already %d", at-1, clock.Now())
		}
	})
	now := uint64(1000)
	clock, _ := synic.NewTSCClock(1e9, 1, func() uint64 { return now })
	if at := clock.TSCAt(math.MaxUint64); at != math.MaxUint64 {
		t.Errorf("the end of time is at TSC %d", at)
	}
	now = 1 << 60
	clock.Pause()
	now = 0 // the TSC was reset while suspended
	clock.Resume()
	if at := clock.TSCAt(5); at != 0 {
		t.Errorf("a time before the TSC began is at %d", at)
	}
}

// A reader on another VP never sees values that do not belong together while
// the page is refreshed and moved.
func TestHammerTSCPage(t *testing.T) {
	var hzIndex atomic.Uint64
	clock := &pairClock{Clock: synictest.NewClock(0), n: &hzIndex}
	g := synictest.New(t, 1, func(c *synic.Config) { c.Clock = clock })
	v := g.VPs[0]
	v.BringUp(2)
	const a = guest.GPA(0x11000)
	seq, err := g.Memory.Word(a)
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			s := seq.Load()
			if s == 0 {
				continue
			}
			r := g.ReferenceTSC()
			if seq.Load() == s && r.Scale != uint64(-r.Offset) {
				t.Errorf("sequence %d: scale %d, offset %d", s, r.Scale, r.Offset)
				return
			}
		}
	}()
	for i := range 20000 {
		hzIndex.Add(1)
		if i%100 == 0 {
			v.Write(hv.MSRReferenceTSC, 0)
			v.Write(hv.MSRReferenceTSC, uint64(a)|1)
		}
		g.Partition.RefreshReferenceTSC()
	}
	close(stop)
	<-done
}

// pairClock's page has a scale and an offset that belong together.
type pairClock struct {
	*synictest.Clock
	n *atomic.Uint64
}

func (c *pairClock) ReferenceTSC() (uint64, int64) {
	n := c.n.Load() + 1
	return n, -int64(n)
}
