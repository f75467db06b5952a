package ic

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// HeartbeatInterval is how often a Heartbeat beats: Hyper-V's own rate, and
// what its clients expect to wait for the news of a dead guest.
const HeartbeatInterval = 2 * time.Second

// heartbeatSize is the size of a heartbeat's body in bytes (Linux struct
// heartbeat_msg_data).
const heartbeatSize = 40

// An AppState is what the guest says of its applications.
type AppState uint32

// Application states. Linux leaves the field as it came, thus AppUnknown.
const (
	AppUnknown  AppState = 0
	AppHealthy  AppState = 1
	AppCritical AppState = 2
	AppStopped  AppState = 3
)

// A HeartbeatStatus tells how the guest is.
type HeartbeatStatus struct {
	Connected bool      // the service is open and its version agreed
	Version   Version   // of the messages, while connected
	Beats     uint64    // answers in all
	LastSeen  time.Time // of the last answer; zero without one
	App       AppState  // in the last answer
}

// A Heartbeat asks the guest every Interval whether it is alive. A guest that
// hangs does not answer, and gets no second question: LastSeen grows old.
type Heartbeat struct {
	Interval time.Duration // 0 means HeartbeatInterval

	mu     sync.Mutex
	status HeartbeatStatus
}

// Offer implements vmbus.Device.
func (h *Heartbeat) Offer() vmbus.Offer {
	return offer("heartbeat", proto.TypeHeartbeat, "fd149e91-82e0-4a7d-afa6-2a4166cbd7c0")
}

// Status returns what is known of the guest. Any goroutine may ask.
func (h *Heartbeat) Status() HeartbeatStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.status
}

func (h *Heartbeat) update(f func(*HeartbeatStatus)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.status)
}

// Serve implements vmbus.Device.
func (h *Heartbeat) Serve(ctx context.Context, ch *vmbus.Channel) error {
	s, err := negotiate(ctx, ch, MsgHeartbeat, []Version{{1, 0}, {3, 0}})
	if err != nil {
		return err
	}
	h.update(func(st *HeartbeatStatus) { st.Connected, st.Version = true, s.version })
	defer h.update(func(st *HeartbeatStatus) { st.Connected = false })
	interval := h.Interval
	if interval <= 0 {
		interval = HeartbeatInterval
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	body := make([]byte, heartbeatSize)
	for sequence := uint64(0); ; sequence += 2 {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		timer.Reset(interval)
		binary.LittleEndian.PutUint64(body, sequence)
		_, answer, err := s.exchange(ctx, body)
		if err != nil {
			return err
		}
		if len(answer) < 12 {
			return fmt.Errorf("%w: heartbeat of %d bytes", ErrMessage, len(answer))
		}
		if n := binary.LittleEndian.Uint64(answer); n != sequence+1 {
			return fmt.Errorf("%w: heartbeat %d answered by %d", ErrMessage, sequence, n)
		}
		h.update(func(st *HeartbeatStatus) {
			st.Beats++
			st.LastSeen = time.Now()
			st.App = AppState(binary.LittleEndian.Uint32(answer[8:]))
		})
	}
}
