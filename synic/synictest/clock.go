package synictest

import (
	"sync"

	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
)

// Frequencies of a Clock: reference time follows from the TSC without a
// remainder.
const (
	TSCHz  = 2_000_000_000
	APICHz = 1_000_000_000

	tscPerUnit = TSCHz / hv.ReferenceHz
)

// A Clock is a synic.Clock that only moves when told. Its alarms fire inside
// Advance, on the caller's goroutine.
type Clock struct {
	mu     sync.Mutex
	now    uint64
	alarms []*alarm
}

// NewClock returns a clock that shows start, in units of 100 ns.
func NewClock(start uint64) *Clock { return &Clock{now: start} }

// Now implements synic.Clock.
func (c *Clock) Now() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// TSC implements synic.Clock.
func (c *Clock) TSC() uint64 { return c.Now() * tscPerUnit }

// TSCHz implements synic.Clock.
func (c *Clock) TSCHz() uint64 { return TSCHz }

// APICHz implements synic.Clock.
func (c *Clock) APICHz() uint64 { return APICHz }

type alarm struct {
	clock *Clock
	fire  func()
	at    uint64 // guarded by clock.mu
	sets  int
}

// Maker is a synic.AlarmMaker.
func (c *Clock) Maker(_ hv.VPIndex, fire func()) (synic.Alarm, error) {
	a := &alarm{clock: c, fire: fire}
	c.mu.Lock()
	c.alarms = append(c.alarms, a)
	c.mu.Unlock()
	return a, nil
}

func (a *alarm) Set(t uint64) {
	a.clock.mu.Lock()
	a.at = t
	a.sets++
	a.clock.mu.Unlock()
}

func (a *alarm) Stop() {
	a.clock.mu.Lock()
	a.at, a.fire = 0, func() {}
	a.clock.mu.Unlock()
}

// Alarm returns the time that the alarm of a VP is set to, 0 for none, and how
// often it has been set.
func (c *Clock) Alarm(vp hv.VPIndex) (at uint64, sets int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alarms[vp].at, c.alarms[vp].sets
}

// Advance moves the clock on by d units of 100 ns. It stops at every alarm on
// the way and fires it at its time.
func (c *Clock) Advance(d uint64) { c.advance(d, false) }

// Jump moves the clock on by d units at once, as after the host had been busy
// elsewhere: what was due on the way fires late.
func (c *Clock) Jump(d uint64) { c.advance(d, true) }

func (c *Clock) advance(d uint64, late bool) {
	c.mu.Lock()
	end := c.now + d
	if late {
		c.now = end
	}
	for {
		var next *alarm
		for _, a := range c.alarms {
			if a.at != 0 && a.at <= end && (next == nil || a.at < next.at) {
				next = a
			}
		}
		if next == nil {
			break
		}
		c.now = max(c.now, next.at)
		next.at = 0
		fire := next.fire
		c.mu.Unlock()
		fire()
		c.mu.Lock()
	}
	c.now = max(c.now, end)
	c.mu.Unlock()
}
