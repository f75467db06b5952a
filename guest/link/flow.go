package link

import (
	"io"
	"sync"
)

// An inflow is the receiving end of one stream: it buffers what the peer sent
// within its credit until a consumer takes it, and works out the credit to
// return.
type inflow struct {
	mu   sync.Mutex
	cond sync.Cond

	// All protected by mu.
	buf     []byte // received, not taken
	spare   []byte // an empty buffer to swap with buf
	cost    int    // of buf, headers included
	credit  int    // what the peer may still send
	owed    int    // consumed and not returned yet
	eof     bool   // the peer ended the stream
	discard bool   // the consumer is gone: count, do not keep
	closed  bool   // the link is down
}

func newInflow() *inflow {
	f := &inflow{credit: Credit}
	f.cond.L = &f.mu
	return f
}

// push takes the payload of a DATA frame. It never blocks. The returned credit
// is to be sent to the peer unless it is 0.
func (f *inflow) push(p []byte) (credit int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cost := len(p) + HeaderSize
	if f.eof {
		return 0, corruptf("DATA after EOF")
	}
	if cost > f.credit {
		return 0, corruptf("DATA of %d bytes beyond the credit of %d", len(p), f.credit)
	}
	f.credit -= cost
	if f.discard {
		return f.settle(cost), nil
	}
	f.buf = append(f.buf, p...)
	f.cost += cost
	f.cond.Signal()
	return 0, nil
}

// pushEOF takes the EOF frame of the stream.
func (f *inflow) pushEOF() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.eof {
		return corruptf("EOF after EOF")
	}
	f.eof = true
	f.cond.Broadcast()
	return nil
}

// ended reports whether the peer ended the stream.
func (f *inflow) ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.eof
}

// take waits for bytes and returns all there are, and what they cost. The
// slice is the consumer's until it calls done. At the end of the stream take
// returns io.EOF; when the link is down, io.ErrClosedPipe, in both cases only
// after the last byte.
func (f *inflow) take() (p []byte, cost int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.buf) == 0 {
		switch {
		case f.eof:
			return nil, 0, io.EOF
		case f.closed:
			return nil, 0, io.ErrClosedPipe
		}
		f.cond.Wait()
	}
	p, cost = f.buf, f.cost
	f.buf, f.spare, f.cost = f.spare[:0], nil, 0
	return p, cost, nil
}

// done gives back the buffer p that take returned, consumed, and returns the
// credit to send to the peer unless it is 0.
func (f *inflow) done(p []byte, cost int) (credit int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spare = p[:0]
	return f.settle(cost)
}

// settle adds consumed bytes to what is owed. Preconditions: mu is held.
func (f *inflow) settle(cost int) (credit int) {
	f.owed += cost
	if f.owed < creditBatch {
		return 0
	}
	credit, f.owed = f.owed, 0
	f.credit += credit
	return credit
}

// drop says that nobody consumes any more: what is buffered and what comes is
// discarded. It returns credit like done.
func (f *inflow) drop() (credit int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cost := f.cost
	f.discard, f.buf, f.spare, f.cost = true, nil, nil, 0
	f.cond.Broadcast()
	return f.settle(cost)
}

// close says that the link is down and nothing more will come.
func (f *inflow) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.cond.Broadcast()
}

// An outflow is the sending end of one stream: the credit the peer granted.
type outflow struct {
	mu   sync.Mutex
	cond sync.Cond

	// All protected by mu.
	credit int
	shut   bool // the peer does not read any more, or the link is down
}

func newOutflow() *outflow {
	f := &outflow{credit: Credit}
	f.cond.L = &f.mu
	return f
}

// grant takes a CREDIT frame. More than the peer can owe is a violation: a
// credit that overflowed would undo the bound on the peer's buffers.
func (f *outflow) grant(n uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n == 0 || n > uint64(Credit-f.credit) {
		return corruptf("CREDIT of %d bytes on top of %d", n, f.credit)
	}
	f.credit += int(n)
	f.cond.Signal()
	return nil
}

// wait blocks until at least one byte of payload may be sent and returns how
// many may, at most MaxPayload. It returns false when the stream is shut.
func (f *outflow) wait() (n int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.credit <= HeaderSize && !f.shut {
		f.cond.Wait()
	}
	return min(f.credit-HeaderSize, MaxPayload), !f.shut
}

// spend takes the cost of a frame with n bytes of payload from the credit.
func (f *outflow) spend(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.credit -= n + HeaderSize
}

// close makes wait return false from now on.
func (f *outflow) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shut = true
	f.cond.Broadcast()
}

// isShut reports whether close was called.
func (f *outflow) isShut() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shut
}
