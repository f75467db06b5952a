package synic_test

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

const (
	timerSINT   = 4
	timerVector = 0xED
)

func timerGuest(t testing.TB) (*synictest.Guest, *synictest.VP) {
	g := synictest.New(t, 1, nil)
	g.BringUp(timerSINT)
	return g, g.VPs[0]
}

func setTimer(v *synictest.VP, n int, flags hv.TimerConfig, count uint64) {
	v.Write(hv.MSRSTIMERConfig(n), uint64(hv.MakeTimerConfig(flags, timerVector, timerSINT)))
	v.Write(hv.MSRSTIMERCount(n), count)
}

func enabled(v *synictest.VP, n int) bool {
	return v.Read(hv.MSRSTIMERConfig(n))&uint64(hv.TimerEnabled) != 0
}

// expirations takes all timer messages there are.
func expirations(t testing.TB, v *synictest.VP) (ps []hv.TimerPayload) {
	t.Helper()
	for {
		m, ok := v.TakeMessage(timerSINT)
		if !ok {
			return ps
		}
		p, ok := hv.DecodeTimerPayload(m.Bytes())
		if !ok || m.Type != hv.MessageTimerExpired || m.Size != hv.TimerPayloadSize || m.Origin != 0 {
			t.Fatalf("message %+v", m)
		}
		ps = append(ps, p)
	}
}

func expectExpirations(t testing.TB, v *synictest.VP, want ...hv.TimerPayload) {
	t.Helper()
	if got := expirations(t, v); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("expirations {timer due delivered} %v, want %v", got, want)
	}
}

// The clock starts at 1000 in all of these.

func TestTimerOneShot(t *testing.T) {
	g, v := timerGuest(t)
	setTimer(v, 1, hv.TimerAutoEnable, 3000)
	if !enabled(v, 1) {
		t.Error("auto-enable did not enable")
	}
	g.Clock.Advance(1999)
	expectExpirations(t, v)
	if !enabled(v, 1) {
		t.Error("disabled before it expired")
	}
	g.Clock.Advance(1)
	expectExpirations(t, v, hv.TimerPayload{Timer: 1, Expiration: 3000, Delivery: 3000})
	if enabled(v, 1) || v.Read(hv.MSRSTIMERCount(1)) != 3000 {
		t.Errorf("after it expired: enabled %v, count %d", enabled(v, 1), v.Read(hv.MSRSTIMERCount(1)))
	}
	g.Clock.Advance(100000)
	expectExpirations(t, v)
	v.Write(hv.MSRSTIMERCount(1), 200000)
	g.Clock.Advance(100000)
	expectExpirations(t, v, hv.TimerPayload{Timer: 1, Expiration: 200000, Delivery: 200000})
	expectInterrupts(t, v, 2)
}

func TestTimerPastOneShot(t *testing.T) {
	for _, count := range []uint64{1, 999, 1000} {
		_, v := timerGuest(t)
		setTimer(v, 0, hv.TimerAutoEnable, count)
		expectInterrupts(t, v, 1) // at once
		if enabled(v, 0) {
			t.Error("still enabled")
		}
		expectExpirations(t, v, hv.TimerPayload{Timer: 0, Expiration: count, Delivery: 1000})
	}
}

// Without auto-enable: COUNT first, then CONFIG.
func TestTimerEnableByConfig(t *testing.T) {
	g, v := timerGuest(t)
	v.Write(hv.MSRSTIMERCount(0), 2000)
	g.Clock.Advance(500)
	if enabled(v, 0) {
		t.Error("enabled by COUNT alone")
	}
	setting := hv.MakeTimerConfig(hv.TimerEnabled, 0, timerSINT)
	v.Write(hv.MSRSTIMERConfig(0), uint64(setting))
	g.Clock.Advance(500)
	expectExpirations(t, v, hv.TimerPayload{Expiration: 2000, Delivery: 2000})
	// Enabled with COUNT 0: nothing to wait for.
	v.Write(hv.MSRSTIMERCount(0), 0)
	v.Write(hv.MSRSTIMERConfig(0), uint64(setting))
	g.Clock.Advance(100000)
	expectExpirations(t, v)
	if at, _ := g.Clock.Alarm(0); at != 0 {
		t.Errorf("the alarm is set to %d", at)
	}
}

func TestTimerStop(t *testing.T) {
	for name, stop := range map[string]func(*synictest.VP){
		"COUNT 0":  func(v *synictest.VP) { v.Write(hv.MSRSTIMERCount(2), 0) },
		"CONFIG 0": func(v *synictest.VP) { v.Write(hv.MSRSTIMERConfig(2), 0) },
		"SINT 0": func(v *synictest.VP) {
			v.Write(hv.MSRSTIMERConfig(2), uint64(hv.MakeTimerConfig(hv.TimerEnabled|hv.TimerAutoEnable, 0, 0)))
		},
		"INIT": func(v *synictest.VP) { v.Reset() },
	} {
		t.Run(name, func(t *testing.T) {
			g, v := timerGuest(t)
			setTimer(v, 2, hv.TimerAutoEnable, 2000)
			stop(v)
			if enabled(v, 2) {
				t.Error("still enabled")
			}
			if at, _ := g.Clock.Alarm(0); at != 0 {
				t.Errorf("the alarm is set to %d", at)
			}
			g.Clock.Advance(5000)
			expectInterrupts(t, v, 0)
		})
	}
}

// Message mode to SINT 0 disables, also through auto-enable; direct mode does
// not care.
func TestTimerSINT0(t *testing.T) {
	g, v := timerGuest(t)
	v.Write(hv.MSRSTIMERConfig(0), uint64(hv.MakeTimerConfig(hv.TimerAutoEnable, 0, 0)))
	v.Write(hv.MSRSTIMERCount(0), 2000)
	if enabled(v, 0) {
		t.Error("auto-enabled with SINT 0")
	}
	v.Write(hv.MSRSTIMERConfig(0), uint64(hv.MakeTimerConfig(hv.TimerEnabled, 0, 0)))
	if enabled(v, 0) {
		t.Error("enabled with SINT 0")
	}
	v.Write(hv.MSRSTIMERConfig(0), uint64(hv.MakeTimerConfig(hv.TimerEnabled|hv.TimerDirect, timerVector, 0)))
	if !enabled(v, 0) {
		t.Error("direct mode disabled for its SINT")
	}
	g.Clock.Advance(1000)
	expectInterrupts(t, v, 1)
}

func TestTimerDirect(t *testing.T) {
	g, v := timerGuest(t)
	v.Write(hv.MSRSCONTROL, 0) // not needed
	setTimer(v, 0, hv.TimerAutoEnable|hv.TimerDirect, 2000)
	g.Clock.Advance(999)
	expectInterrupts(t, v, 0)
	g.Clock.Advance(1)
	if vec, ok := v.TakeInterrupt(); !ok || vec != timerVector {
		t.Errorf("vector %#x (%v)", vec, ok)
	}
	expectExpirations(t, v)
	// A vector that no APIC takes.
	v.Write(hv.MSRSTIMERConfig(0), uint64(hv.MakeTimerConfig(hv.TimerAutoEnable|hv.TimerDirect, 15, 0)))
	v.Write(hv.MSRSTIMERCount(0), 1)
	expectInterrupts(t, v, 1)
	if enabled(v, 0) {
		t.Error("did not expire")
	}
}

func TestTimerPeriodic(t *testing.T) {
	g, v := timerGuest(t)
	setTimer(v, 3, hv.TimerAutoEnable|hv.TimerPeriodic, 10000)
	for n := range uint64(5) {
		g.Clock.Advance(9999)
		expectExpirations(t, v)
		g.Clock.Advance(1)
		due := 1000 + 10000*(n+1)
		expectExpirations(t, v, hv.TimerPayload{Timer: 3, Expiration: due, Delivery: due})
		if !enabled(v, 3) {
			t.Error("disabled itself")
		}
	}
}

// A few missed periods are made up for by shorter ones, unless lazy.
func TestTimerMissedPeriods(t *testing.T) {
	for name, c := range map[string]struct {
		flags hv.TimerConfig
		jump  uint64
		want  []uint64 // expiration and delivery times
	}{
		// Due at 11000, 21000, 31000, 41000 when the clock shows 36000.
		"catch up": {0, 35000, []uint64{11000, 36000, 21000, 41000, 31000, 46000, 41000, 51000, 51000, 56000, 61000, 61000, 71000, 71000}},
		"lazy":     {hv.TimerLazy, 35000, []uint64{11000, 36000, 41000, 41000, 51000, 51000, 61000, 61000, 71000, 71000}},
		// More than can be made up for.
		"too many": {0, 10000*(synic.MaxCatchUp+1) + 15000, []uint64{11000, 106000, 111000, 111000, 121000, 121000, 131000, 131000, 141000, 141000}},
	} {
		t.Run(name, func(t *testing.T) {
			g, v := timerGuest(t)
			setTimer(v, 0, hv.TimerAutoEnable|hv.TimerPeriodic|c.flags, 10000)
			g.Clock.Jump(c.jump)
			var got []uint64
			for range 40 {
				for _, p := range expirations(t, v) {
					got = append(got, p.Expiration, p.Delivery)
				}
				g.Clock.Advance(1000)
			}
			if len(got) < len(c.want) || fmt.Sprint(got[:len(c.want)]) != fmt.Sprint(c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

// A guest that asks for absurd periods gets a bounded number of expirations.
func TestTimerShortPeriod(t *testing.T) {
	for _, period := range []uint64{1, 2, 100, synic.PeriodicFloor - 1} {
		g, v := timerGuest(t)
		setTimer(v, 0, hv.TimerAutoEnable|hv.TimerPeriodic|hv.TimerDirect, period)
		_, before := g.Clock.Alarm(0)
		const span = 1_000_000
		g.Clock.Advance(span)
		n, _ := v.Interrupts()
		_, after := g.Clock.Alarm(0)
		if most := uint64(span/synic.PeriodicFloor + 2); n > most || n < most/2 || after-before > int(most) {
			t.Errorf("period %d: %d interrupts, %d settings of the alarm in %d", period, n, after-before, span)
		}
	}
}

// A busy slot: the expiration waits in the timer's own buffer and comes with
// EOM. A periodic timer loses the periods in between, a one-shot loses nothing.
func TestTimerSlotBusy(t *testing.T) {
	g, v := timerGuest(t)
	port := g.Partition.OpenMessagePort(1, timerSINT, nil)
	port.Post(0, message(1))
	setTimer(v, 0, hv.TimerAutoEnable, 2000)
	setTimer(v, 1, hv.TimerAutoEnable|hv.TimerPeriodic, 3000)
	g.Clock.Advance(20000) // 21000 now; timer 1 was due at 4000, 7000 and so on
	m, pending, ok := g.PeekMessage(v.SIM(), timerSINT)
	if !ok || number(m) != 1 || !pending {
		t.Fatalf("slot: message %d, pending %v", number(m), pending)
	}
	expectInterrupts(t, v, 1)
	if m, ok := v.TakeMessage(timerSINT); !ok || number(m) != 1 {
		t.Fatal("the posted message is gone")
	}
	expectExpirations(t, v,
		hv.TimerPayload{Timer: 0, Expiration: 2000, Delivery: 21000},
		hv.TimerPayload{Timer: 1, Expiration: 4000, Delivery: 21000})
	g.Clock.Advance(1000)
	expectExpirations(t, v, hv.TimerPayload{Timer: 1, Expiration: 22000, Delivery: 22000})
	// All four have buffers of their own, even while ports have none left.
	for n := range synic.PortBuffers + 1 {
		port.Post(0, message(n))
	}
	for n := range hv.TimerCount {
		setTimer(v, n, hv.TimerAutoEnable, 23000)
	}
	g.Clock.Advance(1000)
	for range synic.PortBuffers + 1 {
		v.TakeMessage(timerSINT)
	}
	if n := len(expirations(t, v)); n != hv.TimerCount {
		t.Errorf("%d expirations, want %d", n, hv.TimerCount)
	}
}

// A timer that is set anew takes back the expiration that still waits.
func TestTimerRestartDropsQueued(t *testing.T) {
	g, v := timerGuest(t)
	g.Partition.OpenMessagePort(1, timerSINT, nil).Post(0, message(1))
	setTimer(v, 0, hv.TimerAutoEnable, 2000)
	g.Clock.Advance(1000)
	v.Write(hv.MSRSTIMERCount(0), 5000)
	v.TakeMessage(timerSINT)
	expectExpirations(t, v)
	g.Clock.Advance(3000)
	expectExpirations(t, v, hv.TimerPayload{Expiration: 5000, Delivery: 5000})
}

// An expiration while the SynIC is off waits for it.
func TestTimerSynICOff(t *testing.T) {
	g, v := timerGuest(t)
	setTimer(v, 0, hv.TimerAutoEnable, 2000)
	v.Write(hv.MSRSCONTROL, 0)
	g.Clock.Advance(5000)
	expectExpirations(t, v)
	v.Write(hv.MSRSCONTROL, 1)
	expectExpirations(t, v, hv.TimerPayload{Expiration: 2000, Delivery: 6000})
}

func TestTimerEndOfTime(t *testing.T) {
	g, v := timerGuest(t)
	setTimer(v, 0, hv.TimerAutoEnable, math.MaxUint64)
	setTimer(v, 1, hv.TimerAutoEnable|hv.TimerPeriodic, math.MaxUint64)
	setTimer(v, 2, hv.TimerAutoEnable|hv.TimerPeriodic|hv.TimerLazy, math.MaxUint64-500)
	g.Clock.Advance(1 << 62)
	expectExpirations(t, v)
	if at, _ := g.Clock.Alarm(0); at != math.MaxUint64 {
		t.Errorf("the alarm is set to %d", at)
	}
}

// The alarm is set to the earliest timer, and only when that changes.
func TestTimerAlarm(t *testing.T) {
	g, v := timerGuest(t)
	expect := func(at uint64, sets int) {
		t.Helper()
		if a, n := g.Clock.Alarm(0); a != at || n != sets {
			t.Errorf("alarm at %d, set %d times; want %d, %d", a, n, at, sets)
		}
	}
	expect(0, 0)
	setTimer(v, 0, hv.TimerAutoEnable, 5000)
	expect(5000, 1)
	setTimer(v, 1, hv.TimerAutoEnable, 6000)
	expect(5000, 1)
	setTimer(v, 2, hv.TimerAutoEnable, 4000)
	expect(4000, 2)
	v.Write(hv.MSRSTIMERCount(2), 0)
	expect(5000, 3)
	g.Clock.Advance(4000)
	expect(6000, 4)
	g.Clock.Advance(1000)
	expect(0, 4)
}

// A spuriousAlarm can also fire too early and for nothing.
type spuriousAlarm struct {
	synic.Alarm
	fire func()
}

// An alarm that comes early makes nothing expire early.
func TestTimerNeverEarly(t *testing.T) {
	var alarm *spuriousAlarm
	g := synictest.New(t, 1, func(c *synic.Config) {
		maker := c.Alarms
		c.Alarms = func(vp hv.VPIndex, fire func()) (synic.Alarm, error) {
			a, err := maker(vp, fire)
			alarm = &spuriousAlarm{a, fire}
			return alarm, err
		}
	})
	g.BringUp(timerSINT)
	v := g.VPs[0]
	setTimer(v, 0, hv.TimerAutoEnable, 2000)
	for range 999 {
		alarm.fire()
		g.Clock.Advance(1)
	}
	alarm.fire()
	expectExpirations(t, v)
	if at, _ := g.Clock.Alarm(0); at != 2000 {
		t.Errorf("the alarm is set to %d after an early one", at)
	}
	g.Clock.Advance(1)
	expectExpirations(t, v, hv.TimerPayload{Expiration: 2000, Delivery: 2000})
}

// Random settings of all timers: nothing expires early, one-shots expire
// exactly once and on time, periodic ones keep the rate on average.
func TestTimerModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := synictest.New(t, 1, nil)
		defer g.Close()
		g.BringUp(timerSINT)
		v := g.VPs[0]
		type state struct {
			due    uint64
			period uint64
		}
		var timers [hv.TimerCount]state
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			n := rapid.IntRange(0, hv.TimerCount-1).Draw(rt, "timer")
			now := g.Clock.Now()
			switch rapid.IntRange(0, 3).Draw(rt, "action") {
			case 0:
				due := now + rapid.Uint64Range(0, 20000).Draw(rt, "delta")
				setTimer(v, n, hv.TimerAutoEnable, due)
				timers[n] = state{due: due}
			case 1:
				period := rapid.Uint64Range(synic.PeriodicFloor, 20000).Draw(rt, "period")
				setTimer(v, n, hv.TimerAutoEnable|hv.TimerPeriodic, period)
				timers[n] = state{now + period, period}
			case 2:
				v.Write(hv.MSRSTIMERCount(n), 0)
				timers[n] = state{}
			}
			// A step at a time, so that every message is taken when it comes.
			for range rapid.IntRange(0, 30).Draw(rt, "advance") {
				for _, p := range expirations(t, v) {
					s := &timers[p.Timer]
					if s.due == 0 || p.Expiration != s.due || p.Delivery < s.due || p.Delivery > g.Clock.Now() {
						rt.Fatalf("expiration %+v of a timer due at %d", p, s.due)
					}
					if s.period > 0 {
						s.due += s.period
					} else {
						s.due = 0
					}
				}
				for i, s := range timers {
					if s.due != 0 && s.due <= g.Clock.Now() {
						rt.Fatalf("timer %d is due at %d, it is %d", i, s.due, g.Clock.Now())
					}
					if enabled(v, i) != (s.due != 0) {
						rt.Fatalf("timer %d enabled: %v", i, enabled(v, i))
					}
				}
				g.Clock.Advance(synic.PeriodicFloor / 2)
			}
			for _, p := range expirations(t, v) {
				if s := &timers[p.Timer]; s.period > 0 {
					s.due += s.period
				} else {
					s.due = 0
				}
			}
		}
	})
}
