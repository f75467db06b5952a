package synic

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/synic/hv"
)

// NewTimerFDAlarms returns an AlarmMaker whose alarms are timer descriptors on
// CLOCK_MONOTONIC. The runtime's own timers are good to a millisecond only;
// these are as good as the kernel's.
//
// monotonic converts reference time, in units of 100 ns, to CLOCK_MONOTONIC
// nanoseconds, rounded up; it is called with a VP's lock held. If the two
// clocks drift apart an alarm may come early, which the timers notice and
// bridge with another one.
//
// Each alarm has a goroutine, which Alarm.Stop ends and joins. closer stops
// all that are left.
func NewTimerFDAlarms(monotonic func(refTime uint64) int64) (maker AlarmMaker, closer func()) {
	var mu sync.Mutex
	var all []*timerFD
	maker = func(vp hv.VPIndex, fire func()) (Alarm, error) {
		t, err := newTimerFD(vp, fire, monotonic)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		all = append(all, t)
		mu.Unlock()
		return t, nil
	}
	closer = func() {
		mu.Lock()
		stop := all
		all = nil
		mu.Unlock()
		for _, t := range stop {
			t.Stop()
		}
	}
	return maker, closer
}

// MonotonicTime returns a conversion for NewTimerFDAlarms that measures the
// distance from now each time, so that a drift between the clocks matters only
// over that distance.
func MonotonicTime(c Clock) func(refTime uint64) int64 {
	// The farthest an alarm is set ahead: about a century, so that no sum
	// overflows. Timers that have not expired by then set another.
	const farthest = 1 << 62
	return func(refTime uint64) int64 {
		now := c.Now()
		if refTime <= now {
			return 1
		}
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			panic(fmt.Sprintf("synic: clock_gettime: %v", err)) // every Linux has it
		}
		// The clock was read before: the sum is late rather than early.
		return ts.Nano() + int64(min(refTime-now, farthest/100)*100)
	}
}

// A timerFD is an alarm made of a timerfd and a goroutine that waits in the
// network poller until it is readable.
type timerFD struct {
	monotonic func(uint64) int64
	file      *os.File
	conn      syscall.RawConn
	stop      sync.Once
	done      chan struct{} // the goroutine has ended

	// Set is only called under its VP's lock. These spare it an allocation.
	spec  unix.ItimerSpec
	arm   func(fd uintptr)
	armed error
}

func newTimerFD(vp hv.VPIndex, fire func(), monotonic func(uint64) int64) (*timerFD, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timerfd_create: %w", err)
	}
	t := &timerFD{
		monotonic: monotonic,
		file:      os.NewFile(uintptr(fd), fmt.Sprintf("timerfd of VP %d", vp)),
		done:      make(chan struct{}),
	}
	if t.conn, err = t.file.SyscallConn(); err != nil {
		t.file.Close()
		return nil, fmt.Errorf("timerfd of VP %d: %w", vp, err)
	}
	t.arm = func(fd uintptr) {
		t.armed = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &t.spec, nil)
	}
	go t.wait(fire)
	return t, nil
}

func (t *timerFD) wait(fire func()) {
	defer close(t.done)
	var expirations [8]byte
	for {
		if _, err := t.file.Read(expirations[:]); err != nil {
			return // closed by Stop
		}
		fire()
	}
}

// Set implements Alarm.
func (t *timerFD) Set(at uint64) {
	t.spec = unix.ItimerSpec{}
	if at != 0 {
		// A value of zero would disarm; any time in the past fires at once.
		t.spec.Value = unix.NsecToTimespec(max(1, t.monotonic(at)))
	}
	if err := t.conn.Control(t.arm); err != nil {
		return // stopped
	}
	if t.armed != nil {
		// The arguments are ours and the descriptor is open.
		panic(fmt.Sprintf("synic: timerfd_settime: %v", t.armed))
	}
}

// Stop implements Alarm.
func (t *timerFD) Stop() {
	t.stop.Do(func() { t.file.Close() })
	<-t.done
}
