package ic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// ShutdownFlags say what the guest shall do.
type ShutdownFlags uint32

// Shutdown flags. Force may be added to each of the others.
const (
	PowerOff  ShutdownFlags = 0
	Force     ShutdownFlags = 1
	Restart   ShutdownFlags = 2
	Hibernate ShutdownFlags = 4
)

// shutdownSize is the size of a shutdown message's body in bytes (Linux struct
// shutdown_msg_data). Linux drops a shorter one without an answer.
const shutdownSize = 2060

// reasonPlanned is the reason code of a planned shutdown (Windows
// SHTDN_REASON_FLAG_PLANNED).
const reasonPlanned = 0x80000000

// ErrShutdownClosed reports that the guest closed the service before it had
// answered.
var ErrShutdownClosed = errors.New("guest closed the shutdown service")

// A Shutdown asks the guest to end.
type Shutdown struct {
	once     sync.Once
	requests chan *shutdownRequest

	mu    sync.Mutex
	ready bool
}

type shutdownRequest struct {
	flags  ShutdownFlags
	reason string
	done   chan error // has room for the answer
}

func (s *Shutdown) queue() chan *shutdownRequest {
	s.once.Do(func() { s.requests = make(chan *shutdownRequest) })
	return s.requests
}

// Offer implements vmbus.Device.
func (s *Shutdown) Offer() vmbus.Offer {
	return offer("shutdown", proto.TypeShutdown, "b6650ff7-33bc-4840-8048-e0676786f393")
}

// Ready reports whether the guest listens at present.
func (s *Shutdown) Ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

func (s *Shutdown) setReady(ready bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = ready
}

// Shutdown asks the guest to power off, restart or hibernate, and waits for
// its answer: nil if it will. A guest that does not listen yet is asked when it
// does. reason is for the guest's log, at most 2047 bytes of it.
//
// Errors are a Status, if the guest refuses; ErrShutdownClosed; ctx's, when
// there is no answer in time. The guest may still act after that.
func (s *Shutdown) Shutdown(ctx context.Context, flags ShutdownFlags, reason string) error {
	r := &shutdownRequest{flags, reason, make(chan error, 1)}
	select {
	case s.queue() <- r:
	case <-ctx.Done():
		return fmt.Errorf("shutdown: guest does not listen: %w", ctx.Err())
	}
	select {
	case err := <-r.done:
		if err != nil {
			return fmt.Errorf("shutdown: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("shutdown: no answer: %w", ctx.Err())
	}
}

// Serve implements vmbus.Device.
func (s *Shutdown) Serve(ctx context.Context, ch *vmbus.Channel) error {
	ic, err := negotiate(ctx, ch, MsgShutdown, []Version{{1, 0}, {3, 0}, {3, 1}, {3, 2}})
	if err != nil {
		return err
	}
	s.setReady(true)
	defer s.setReady(false)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-s.queue():
			status, _, err := ic.exchange(ctx, r.body())
			switch {
			case err != nil:
				r.done <- ErrShutdownClosed
				return err
			case status != StatusOK:
				r.done <- status
			default:
				r.done <- nil
			}
		}
	}
}

func (r *shutdownRequest) body() []byte {
	b := make([]byte, shutdownSize)
	binary.LittleEndian.PutUint32(b, reasonPlanned)
	binary.LittleEndian.PutUint32(b[8:], uint32(r.flags))
	copy(b[12:shutdownSize-1], r.reason)
	return b
}
