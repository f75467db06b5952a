package synic

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/hvpost/hvpost/synic/hv"
)

// measurements is how often the relation of clock and TSC is sampled; the
// tightest sample counts, one that was not interrupted.
const measurements = 8

// referenceTSC returns the content of the reference TSC page for now, apart
// from the sequence; false: the clock cannot be expressed by it.
func (p *Partition) referenceTSC() (hv.ReferenceTSC, bool) {
	c := p.cfg.Clock
	if r, ok := c.(TSCReferencer); ok {
		scale, offset := r.ReferenceTSC()
		return hv.ReferenceTSC{Scale: scale, Offset: offset}, scale != 0
	}
	scale, ok := hv.TSCScale(c.TSCHz())
	if !ok {
		return hv.ReferenceTSC{}, false
	}
	raw := hv.ReferenceTSC{Scale: scale}
	var offset, best uint64
	for i := range measurements {
		before, tsc, after := c.Now(), c.TSC(), c.Now()
		if i == 0 || after-before < best {
			best = after - before
			offset = before - raw.Time(tsc)
		}
	}
	return hv.ReferenceTSC{Scale: scale, Offset: int64(offset)}, true
}

// fillTSCPage writes the page's content, to RAM too if it is there, by the
// protocol of the TLFS: sequence zero, the values, a new sequence. Readers
// begin anew when the sequence has changed, and ask TIME_REF_COUNT while it is
// zero. Partition.mu is held.
func (p *Partition) fillTSCPage() {
	ref, ok := p.referenceTSC()
	if ok {
		// Old guests take all ones for invalid as well.
		if p.tscSequence++; p.tscSequence == ^uint32(0) {
			p.tscSequence = 1
		}
		ref.Sequence = p.tscSequence
	}
	var b [16]byte
	binary.LittleEndian.PutUint64(b[0:], ref.Scale)
	binary.LittleEndian.PutUint64(b[8:], uint64(ref.Offset))
	o := &p.tscPage
	fill := func() {
		o.word(hv.TSCPageSequence).Store(0)
		o.write(hv.TSCPageScale, b[:])
		o.word(hv.TSCPageSequence).Store(ref.Sequence)
	}
	visible := o.visible
	if visible {
		fill()
	}
	// The copy too: that is what the page is shown from the next time.
	o.visible = false
	fill()
	o.visible = visible
}

// RefreshReferenceTSC brings the reference TSC page, if it is enabled, in line
// with the Clock again. The machine calls it when their relation has changed,
// as after a pause.
func (p *Partition) RefreshReferenceTSC() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.dead.Load() && p.tscRegister.Enabled() {
		p.fillTSCPage()
	}
}

func (p *Partition) writeTSCRegister(r hv.PageRegister) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tscRegister = r.Clean()
	if r.Enabled() {
		p.fillTSCPage()
	}
	p.tscPage.set(r.Enabled(), r.Base())
}

// A TSCClock is a Clock made from nothing but a TSC, so that the counter, the
// reference TSC page and the timers agree to the unit.
type TSCClock struct {
	hz, apicHz uint64
	tsc        func() uint64

	mu    sync.Mutex // held to replace state
	state atomic.Pointer[tscState]
}

// tscState is how time follows from the TSC. It is never changed, so that
// readers need no lock.
type tscState struct {
	ref    hv.ReferenceTSC
	paused bool
	now    uint64 // while paused
}

// NewTSCClock returns a clock that starts at 0 now. tsc reads the guest's TSC,
// which runs at hz; it is called from any goroutine. False means that hz is too
// low: the TSC must be faster than reference time, 10 MHz.
func NewTSCClock(hz, apicHz uint64, tsc func() uint64) (*TSCClock, bool) {
	scale, ok := hv.TSCScale(hz)
	if !ok {
		return nil, false
	}
	c := &TSCClock{hz: hz, apicHz: apicHz, tsc: tsc}
	ref := hv.ReferenceTSC{Scale: scale}
	ref.Offset = -int64(ref.Time(tsc()))
	c.state.Store(&tscState{ref: ref})
	return c, true
}

// Now returns the reference time in units of 100 ns.
func (c *TSCClock) Now() uint64 {
	s := c.state.Load()
	if s.paused {
		return s.now
	}
	// Two processors of the host may disagree about the TSC by a little, and
	// the first reading must not be before the beginning.
	return uint64(max(0, int64(s.ref.Time(c.tsc()))))
}

// Pause stops reference time, as the TLFS wants while all VPs are suspended.
func (c *TSCClock) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := *c.state.Load()
	s.now, s.paused = c.Now(), true
	c.state.Store(&s)
}

// Resume lets reference time go on from where Pause stopped it. The caller
// then calls Partition.RefreshReferenceTSC.
func (c *TSCClock) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := *c.state.Load()
	if s.paused {
		s.paused = false
		s.ref.Offset += int64(s.now) - int64(s.ref.Time(c.tsc()))
		c.state.Store(&s)
	}
}

// TSC returns the guest's TSC.
func (c *TSCClock) TSC() uint64 { return c.tsc() }

// TSCHz returns the frequency of the guest's TSC.
func (c *TSCClock) TSCHz() uint64 { return c.hz }

// APICHz returns the frequency of the APIC timer.
func (c *TSCClock) APICHz() uint64 { return c.apicHz }

// ReferenceTSC implements TSCReferencer.
func (c *TSCClock) ReferenceTSC() (scale uint64, offset int64) {
	ref := c.state.Load().ref
	return ref.Scale, ref.Offset
}

// TSCAt returns the TSC value at which reference time reaches t, for arming a
// host timer: the first value for which Now is not before t.
func (c *TSCClock) TSCAt(t uint64) uint64 {
	ref := c.state.Load().ref
	n := t - uint64(ref.Offset)
	switch {
	case ref.Offset > 0 && t < uint64(ref.Offset):
		return 0
	case ref.Offset < 0 && n < t, n >= ref.Scale:
		return ^uint64(0) // beyond the TSC's range
	}
	// The smallest x with x*scale >> 64 >= n is ceil(n<<64 / scale).
	q, r := bits.Div64(n, 0, ref.Scale)
	if r != 0 {
		q++
	}
	return q
}
