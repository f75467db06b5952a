package synic_test

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

// monotonicClock is reference time that began with the test.
type monotonicClock struct{ start int64 }

func monotonicNow() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

func (c monotonicClock) Now() uint64  { return uint64(monotonicNow()-c.start) / 100 }
func (c monotonicClock) TSC() uint64  { return c.Now() * 200 }
func (monotonicClock) TSCHz() uint64  { return 2_000_000_000 }
func (monotonicClock) APICHz() uint64 { return 1_000_000_000 }

func TestTimerFDAlarm(t *testing.T) {
	before := runtime.NumGoroutine()
	clock := monotonicClock{monotonicNow()}
	maker, closer := synic.NewTimerFDAlarms(synic.MonotonicTime(clock))
	fired := make(chan uint64, 100)
	a, err := maker(0, func() { fired <- clock.Now() })
	if err != nil {
		t.Fatal(err)
	}
	wait := func(what string, notBefore uint64) {
		t.Helper()
		select {
		case at := <-fired:
			if at < notBefore {
				t.Errorf("%s: fired at %d, %d too early", what, at, notBefore-at)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: did not fire", what)
		}
	}
	silent := func(what string) {
		t.Helper()
		select {
		case <-fired:
			t.Errorf("%s: fired", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
	for _, d := range []uint64{1, 10, 1000, 50_000} {
		at := clock.Now() + d
		a.Set(at)
		wait("ahead", at)
	}
	silent("once only")
	a.Set(1)
	wait("in the past", 0)
	a.Set(clock.Now() + 50_000)
	a.Set(0)
	silent("disarmed")
	a.Set(clock.Now() + 1<<62)
	a.Set(1<<64 - 1)
	silent("far away")
	later := clock.Now() + 20_000
	a.Set(later)
	wait("set again", later)
	a.Set(clock.Now() + 50_000)
	a.Stop()
	a.Set(clock.Now() + 1)
	silent("stopped")
	closer() // stops it once more, and nothing else
	for range 1000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d goroutines, had %d", runtime.NumGoroutine(), before)
}

// Stop waits for a fire that runs.
func TestTimerFDStopJoins(t *testing.T) {
	clock := monotonicClock{monotonicNow()}
	maker, closer := synic.NewTimerFDAlarms(synic.MonotonicTime(clock))
	in, out := make(chan struct{}), make(chan struct{})
	var ended atomic.Bool
	a, err := maker(0, func() { close(in); <-out; ended.Store(true) })
	if err != nil {
		t.Fatal(err)
	}
	a.Set(1)
	<-in
	time.AfterFunc(10*time.Millisecond, func() { close(out) })
	closer()
	if !ended.Load() {
		t.Error("Stop did not wait")
	}
}

// Real timers end to end: the messages of a periodic timer, none early.
func TestTimerFDPartition(t *testing.T) {
	clock := monotonicClock{monotonicNow()}
	maker, closer := synic.NewTimerFDAlarms(synic.MonotonicTime(clock))
	defer closer()
	g := synictest.New(t, 2, func(c *synic.Config) { c.Clock, c.Alarms = clock, maker })
	g.BringUp(timerSINT)
	v := g.VPs[1]
	setTimer(v, 0, hv.TimerAutoEnable|hv.TimerPeriodic, 10_000)
	var last uint64
	for range 20 {
		if _, ok := v.WaitInterrupt(nil); !ok {
			return
		}
		for _, p := range expirations(t, v) {
			if p.Delivery < p.Expiration || p.Expiration < last+10_000 {
				t.Errorf("expiration %+v after %d", p, last)
			}
			last = p.Expiration
		}
	}
	g.Partition.Close() // with the timer running
}
