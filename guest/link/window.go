package link

import (
	"io"
	"sync"
	"sync/atomic"
)

// A bell is a doorbell as seen by one waiter: rings that come before the wait
// are kept, any number as one.
type bell chan struct{}

func newBell() bell { return make(bell, 1) }

// ring never blocks.
func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// windowEnd is one end of the window as a byte stream. It is the same code in
// the monitor and in the guest: what differs is whose rings are whose and how
// to ring the peer.
type windowEnd struct {
	ringPeer func() error // rings the peer's doorbell; must not block for long

	rmu sync.Mutex // one Read at a time
	in  ringReader // protected by rmu
	wmu sync.Mutex // one Write at a time
	out ringWriter // protected by wmu

	readable bell
	writable bell
	done     chan struct{}
	closed   atomic.Bool
}

func newWindowEnd(in, out ring, ringPeer func() error) *windowEnd {
	return &windowEnd{
		ringPeer: ringPeer, in: ringReader{ring: in}, out: ringWriter{ring: out},
		readable: newBell(), writable: newBell(), done: make(chan struct{}),
	}
}

// kick takes the peer's ring. It may mean bytes or space: both sides look.
func (e *windowEnd) kick() {
	e.readable.ring()
	e.writable.ring()
}

func (e *windowEnd) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	e.rmu.Lock()
	defer e.rmu.Unlock()
	for armed := false; ; {
		if e.closed.Load() {
			return 0, io.ErrClosedPipe
		}
		n, ring, err := e.in.get(p)
		if ring {
			if rerr := e.ringPeer(); err == nil {
				err = rerr
			}
		}
		if n > 0 || err != nil {
			if armed {
				e.in.rwait.Store(0)
			}
			return n, err
		}
		// A Swap is a full barrier with the race detector too, a Store is not.
		// The flag goes up before the last look at the index, or a write in
		// between would find no flag and we would find no bytes.
		if !armed {
			e.in.rwait.Swap(1)
			armed = true
			continue
		}
		select {
		case <-e.readable:
		case <-e.done:
			return 0, io.ErrClosedPipe
		}
		armed = false
	}
}

func (e *windowEnd) Write(p []byte) (int, error) {
	e.wmu.Lock()
	defer e.wmu.Unlock()
	total := 0
	for armed := false; total < len(p); {
		if e.closed.Load() {
			return total, io.ErrClosedPipe
		}
		n, ring, err := e.out.put(p[total:])
		total += n
		if ring {
			if rerr := e.ringPeer(); err == nil {
				err = rerr
			}
		}
		if err != nil {
			return total, err
		}
		if n > 0 {
			if armed {
				e.out.wwait.Store(0)
				armed = false
			}
			continue
		}
		if !armed {
			e.out.wwait.Swap(1)
			armed = true
			continue
		}
		select {
		case <-e.writable:
		case <-e.done:
			return total, io.ErrClosedPipe
		}
		armed = false
	}
	return total, nil
}

// Close unblocks Read and Write. The window itself stays.
func (e *windowEnd) Close() error {
	if !e.closed.Swap(true) {
		close(e.done)
	}
	return nil
}
