package ic

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
)

const (
	// TimeSyncInterval is how often the guest gets a time sample, for its
	// /dev/ptp_hyperv: Hyper-V's own rate. Between samples the guest goes by
	// its reference counter, which drifts from the host's disciplined clock by
	// less than 0.5 ms in this time (100 ppm).
	TimeSyncInterval = 5 * time.Second

	// timeSyncTolerance is how far the guest's clock may be off, as far as the
	// host knows, before it is set again.
	timeSyncTolerance = 100 * time.Millisecond

	// timeSyncStopped is how late a timer fires only in a process that was
	// stopped.
	timeSyncStopped = 2 * time.Second
)

// Flags of a time sample (Linux ICTIMESYNCFLAG).
const (
	timeSyncSet    = 1 // set the clock
	timeSyncSample = 2 // just so that you know
)

// fileTimeEpoch is the Unix epoch in units of 100 ns since 1601-01-01, the time
// of Windows.
const fileTimeEpoch = 116444736000000000

// FileTime converts to units of 100 ns since 1601-01-01 UTC.
func FileTime(t time.Time) uint64 {
	return uint64(t.Unix())*10_000_000 + uint64(t.Nanosecond()/100) + fileTimeEpoch
}

// A ReferenceClock is the partition's reference time, in units of 100 ns.
type ReferenceClock interface{ Now() uint64 }

// A TimeSync sets the guest's clock when the guest opens the service, and again
// whenever the host's wall clock and the partition's reference time have come
// apart: the host's clock was set or slewed, or the host or this process slept.
// In between it only gives samples.
type TimeSync struct {
	Reference ReferenceClock
	Wall      func() time.Time // nil means time.Now
	Interval  time.Duration    // 0 means TimeSyncInterval

	once sync.Once
	now  chan struct{} // Resync was called
}

// Offer implements vmbus.Device.
func (t *TimeSync) Offer() vmbus.Offer {
	return offer("timesync", proto.TypeTimeSync, "2dd1ce17-079e-403c-b352-a1921ee207ee")
}

func (t *TimeSync) resync() chan struct{} {
	t.once.Do(func() { t.now = make(chan struct{}, 1) })
	return t.now
}

// Resync has the guest's clock set at once. The machine calls it when it
// learns that it was stopped (SIGCONT). It never blocks.
func (t *TimeSync) Resync() {
	select {
	case t.resync() <- struct{}{}:
	default:
	}
}

// sample reads both clocks at the same moment: of three tries the one during
// which least time passed.
func (t *TimeSync) sample() (wall, reference uint64) {
	now := t.Wall
	if now == nil {
		now = time.Now
	}
	best := ^uint64(0)
	for range 3 {
		before := t.Reference.Now()
		w := now()
		after := t.Reference.Now()
		if d := after - before; d < best {
			best, wall, reference = d, FileTime(w), before+d/2
		}
	}
	return wall, reference
}

// Serve implements vmbus.Device.
func (t *TimeSync) Serve(ctx context.Context, ch *vmbus.Channel) error {
	s, err := negotiate(ctx, ch, MsgTimeSync, []Version{{1, 0}, {3, 0}, {4, 0}})
	if err != nil {
		return err
	}
	interval := t.Interval
	if interval <= 0 {
		interval = TimeSyncInterval
	}
	timer := time.NewTimer(interval)
	defer timer.Stop()
	var set uint64 // wall less reference time when the clock was set
	for force := true; ; {
		wall, reference := t.sample()
		offset := wall - reference
		flags := byte(timeSyncSample)
		if off := int64(offset - set); force || max(off, -off) > int64(timeSyncTolerance/100) {
			flags, set = timeSyncSet, offset
		}
		if _, _, err := s.exchange(ctx, timeSyncBody(s.version, wall, reference, flags)); err != nil {
			return err
		}
		due := time.Now().Add(interval)
		timer.Reset(interval)
		select {
		case <-timer.C:
			// The guest's clock may have stood still with this process.
			force = time.Since(due) > timeSyncStopped
		case <-t.resync():
			force = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// timeSyncBody encodes a sample for the negotiated version: from 4.0 on host
// time and reference time belong together (Linux struct ictimesync_ref_data),
// before there is a round-trip time instead (struct ictimesync_data).
func timeSyncBody(v Version, wall, reference uint64, flags byte) []byte {
	if v.Major >= 4 {
		b := make([]byte, 24) // 22 and padding
		binary.LittleEndian.PutUint64(b, wall)
		binary.LittleEndian.PutUint64(b[8:], reference)
		b[16] = flags
		return b
	}
	b := make([]byte, 32) // 25 and padding
	binary.LittleEndian.PutUint64(b, wall)
	b[24] = flags
	return b
}
