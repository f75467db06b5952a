package synic

import (
	"math"

	"github.com/hvpost/hvpost/synic/hv"
)

// A guest may ask for any period. These bound what that costs the host.
const (
	// periodicFloor is the least time between two expirations of a periodic
	// timer, in units of 100 ns: a guest that asks for less gets fewer.
	periodicFloor = 500

	// maxCatchUp is how many missed periods a timer that is not lazy makes up
	// for by shorter ones. With more it starts afresh, as the TLFS allows.
	maxCatchUp = 8
)

// A timer is a synthetic timer (TLFS "Synthetic Timers"). Times are reference
// time in units of 100 ns.
type timer struct {
	index  int
	config hv.TimerConfig
	count  uint64
	due    uint64 // when it expires next; 0: not running
	at     uint64 // when that is acted on, at or after due
	buffer buffer // of its one message
}

// stamp fills in the delivery time when the message goes into its slot.
func (t *timer) stamp(m *hv.Message, now uint64) {
	p, _ := hv.DecodeTimerPayload(m.Payload[:])
	p.Delivery = now
	p.Put((*[hv.TimerPayloadSize]byte)(m.Payload[:]))
}

// setTimerConfig is a write to a configuration register; false means #GP. A
// timer that was running starts anew. mu is held.
func (v *VP) setTimerConfig(t *timer, c hv.TimerConfig, after *deferred) bool {
	if c&hv.TimerReserved != 0 || c&hv.TimerDirect != 0 && !v.p.hasFeature(hv.FeatureDirectTimers) {
		return false
	}
	v.stopTimer(t, after)
	t.config = c
	v.startTimer(t, after)
	return true
}

// setTimerCount is a write to a count register. mu is held.
func (v *VP) setTimerCount(t *timer, count uint64, after *deferred) {
	v.stopTimer(t, after)
	t.count = count
	switch {
	case count == 0:
		t.config &^= hv.TimerEnabled
	case t.config&hv.TimerAutoEnable != 0:
		t.config |= hv.TimerEnabled
	}
	v.startTimer(t, after)
}

// stopTimer also takes back a message that still waits for its slot: the guest
// has changed its mind about it.
func (v *VP) stopTimer(t *timer, after *deferred) {
	t.due, t.at = 0, 0
	if t.buffer.queued {
		v.drop(t.config.SINT(), func(b *buffer) bool { return b.timer == t }, after)
	}
}

// startTimer starts a timer whose registers say so. SINT 0 takes no timer
// messages: such a timer is disabled at once.
func (v *VP) startTimer(t *timer, after *deferred) {
	if t.config&hv.TimerDirect == 0 && t.config.SINT() == 0 {
		t.config &^= hv.TimerEnabled
	}
	if t.config&hv.TimerEnabled != 0 && t.count != 0 {
		t.due = t.count
		if t.config&hv.TimerPeriodic != 0 {
			t.due = addTime(v.p.cfg.Clock.Now(), t.count)
		}
		t.at = t.due
	}
	v.runTimers(after)
}

// expire is the VP's alarm.
func (v *VP) expire() {
	var after deferred
	v.mu.Lock()
	if !v.dead {
		v.alarmAt = 0
		v.runTimers(&after)
	}
	v.mu.Unlock()
	after.run()
}

// runTimers lets expire what is due and sets the alarm for the rest. mu is
// held.
func (v *VP) runTimers(after *deferred) {
	now := v.p.cfg.Clock.Now()
	for n := range v.timer {
		if t := &v.timer[n]; t.due != 0 && t.at <= now {
			v.fire(t, now, after)
		}
	}
	v.rearm()
}

func (v *VP) rearm() {
	var first uint64
	for n := range v.timer {
		if t := &v.timer[n]; t.due != 0 && (first == 0 || t.at < first) {
			first = t.at
		}
	}
	if first != v.alarmAt {
		v.alarmAt = first
		v.alarm.Set(first)
	}
}

// fire is one expiration of t.
func (v *VP) fire(t *timer, now uint64, after *deferred) {
	expiration := t.due
	if t.config&hv.TimerPeriodic != 0 {
		t.advance(now)
	} else {
		t.due, t.at = 0, 0
		t.config &^= hv.TimerEnabled
	}
	if t.config&hv.TimerDirect != 0 {
		v.interruptDirect(t.config.Vector(), after)
		return
	}
	if t.buffer.queued {
		return // the guest has not taken the last one; this period is lost
	}
	m := &t.buffer.msg
	m.Type, m.Origin, m.Size = hv.MessageTimerExpired, 0, hv.TimerPayloadSize
	hv.TimerPayload{Timer: uint32(t.index), Expiration: expiration}.Put((*[hv.TimerPayloadSize]byte)(m.Payload[:]))
	t.buffer.queued = true
	v.send(t.config.SINT(), &t.buffer, after)
}

// advance finds the next expiration of a periodic timer that expired just now.
func (t *timer) advance(now uint64) {
	late := now - t.due
	if missed := late / t.count; missed > 0 && (t.config&hv.TimerLazy != 0 || missed > maxCatchUp) {
		t.due += missed * t.count
	}
	t.due = addTime(t.due, t.count)
	gap := uint64(periodicFloor)
	if t.due <= now {
		gap = max(gap, t.count/2) // a shortened period
	}
	t.at = max(t.due, addTime(now, gap))
}

func (v *VP) interruptDirect(vector uint8, after *deferred) {
	if vector < hv.FirstVector {
		return // no APIC accepts it
	}
	if err := v.p.cfg.Interrupts.Interrupt(v.index, vector); err != nil {
		after.add(func() {
			v.p.log.printf("VP %d: interrupt %#x of a timer: %v", v.index, vector, err)
		})
	}
}

// addTime adds and stops at the end of time.
func addTime(a, b uint64) uint64 {
	if s := a + b; s >= a {
		return s
	}
	return math.MaxUint64
}
