package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestGate(t *testing.T) {
	g := NewGate()
	if n, ok := g.Take(Window + 5); n != Window || !ok {
		t.Fatalf("Take = %d, %v, want the window of %d", n, ok, Window)
	}
	got := make(chan int)
	go func() {
		n, _ := g.Take(10)
		got <- n
	}()
	if err := g.Give(3); err != nil {
		t.Fatal(err)
	}
	if n := <-got; n != 3 {
		t.Errorf("Take = %d, want the 3 given", n)
	}
	for _, n := range []uint32{Window + 1, 1<<32 - 1} {
		if err := g.Give(n); !errors.Is(err, ErrWindow) {
			t.Errorf("Give(%d) = %v, want %v", n, err, ErrWindow)
		}
	}
	closed := make(chan bool)
	go func() {
		_, ok := g.Take(1)
		closed <- ok
	}()
	g.Close()
	if <-closed {
		t.Error("Take succeeded on a closed gate")
	}
}

// TestInboxModel compares an inbox with a plain buffer.
func TestInboxModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := NewInbox()
		var model []byte
		var next byte
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "put") {
				p := make([]byte, rapid.SampledFrom([]int{0, 1, 100, MaxPayload, Window / 2, Window}).Draw(t, "size"))
				for i := range p {
					p[i] = next
					next++
				}
				err := b.Put(p)
				if fits := len(model)+len(p) <= Window; fits != (err == nil) {
					t.Fatalf("Put(%d) with %d queued: %v", len(p), len(model), err)
				}
				if err == nil {
					model = append(model, p...)
				} else {
					next -= byte(len(p))
				}
			} else if len(model) > 0 {
				p := make([]byte, rapid.IntRange(1, MaxPayload).Draw(t, "read"))
				n, err := b.Read(p)
				if err != nil || n == 0 || !bytes.Equal(p[:n], model[:n]) {
					t.Fatalf("Read = %d, %v", n, err)
				}
				model = model[n:]
			}
		}
		b.EOF()
		rest, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(rest, model) {
			t.Fatalf("rest of %d bytes, %v, want %d", len(rest), err, len(model))
		}
	})
}

func TestInboxAbort(t *testing.T) {
	b := NewInbox()
	if err := b.Put([]byte("x")); err != nil {
		t.Fatal(err)
	}
	b.Abort()
	if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.ErrClosedPipe {
		t.Errorf("Read = %d, %v, want %v", n, err, io.ErrClosedPipe)
	}
	if err := b.Put([]byte("x")); err != nil {
		t.Errorf("Put after Abort: %v", err)
	}
}

// link is two ends of the protocol with a reader each, as daemon and client are.
type link struct {
	w     *Writer // towards the receiver
	back  *Writer // towards the sender
	gate  *Gate
	inbox *Inbox
	hung  chan struct{} // closed when the receiver wants no more
	most  int           // bytes in the inbox at most, as the reader saw
	wg    sync.WaitGroup
	close func()
}

func newLink(t *testing.T) *link {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	l := &link{w: NewWriter(w1), back: NewWriter(w2), gate: NewGate(), inbox: NewInbox(), hung: make(chan struct{})}
	l.close = func() { w1.Close(); w2.Close(); l.wg.Wait() }
	l.wg.Go(func() {
		r := NewReader(r1)
		for {
			f, err := r.Next()
			if err != nil {
				l.inbox.EOF()
				return
			}
			switch f.Type {
			case TypeData:
				if err := l.inbox.Put(f.Payload); err != nil {
					t.Errorf("the sender exceeds the window: %v", err)
				}
				l.inbox.mu.Lock()
				l.most = max(l.most, l.inbox.n)
				l.inbox.mu.Unlock()
			case TypeEOF:
				l.inbox.EOF()
			}
		}
	})
	l.wg.Go(func() {
		r := NewReader(r2)
		for {
			f, err := r.Next()
			if err != nil {
				return
			}
			switch f.Type {
			case TypeCredit:
				n, err := f.Uint32()
				if err == nil {
					err = l.gate.Give(n)
				}
				if err != nil {
					t.Errorf("credit: %v", err)
				}
			case TypeEOF:
				close(l.hung)
			}
		}
	})
	return l
}

// slowWriter takes a few bytes at a time, checking them against what random sent.
type slowWriter struct {
	t   *testing.T
	src *rand.ChaCha8
	n   int
}

func (s *slowWriter) Write(p []byte) (int, error) {
	want := make([]byte, len(p))
	s.src.Read(want)
	if !bytes.Equal(p, want) {
		s.t.Fatalf("bytes differ after %d", s.n)
	}
	s.n += len(p)
	return len(p), nil
}

// TestSendReceive moves 8 MiB within the window, and all of them.
func TestSendReceive(t *testing.T) {
	l := newLink(t)
	const total = 8 << 20
	seed := [32]byte{1}
	dst := &slowWriter{t: t, src: rand.NewChaCha8(seed)}
	done := make(chan error)
	go func() { done <- Receive(l.back, 1, Stdout, l.inbox, dst) }()
	if err := Send(l.w, 1, Stdout, l.gate, io.LimitReader(rand.NewChaCha8(seed), total)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	l.close()
	if dst.n != total {
		t.Errorf("%d bytes arrived, want %d", dst.n, total)
	}
	if l.most > Window {
		t.Errorf("%d bytes were queued, the window is %d", l.most, Window)
	}
}

// TestReceiveWithoutConsumer checks that a consumer that takes nothing stops the sender at the window, and nobody else.
func TestReceiveWithoutConsumer(t *testing.T) {
	l := newLink(t)
	sent := make(chan error)
	src, in := io.Pipe()
	go func() { sent <- Send(l.w, 1, Stdout, l.gate, src) }()
	if _, err := in.Write(make([]byte, Window)); err != nil {
		t.Fatal(err)
	}
	// The window is used up, so a close is the only thing that can end this Send: it must not read on.
	more := make(chan struct{})
	go func() {
		in.Write([]byte("x")) // taken only when the pipe's reader is closed
		close(more)
	}()
	l.gate.Close()
	if err := <-sent; err != nil {
		t.Errorf("Send = %v", err)
	}
	src.Close()
	<-more
	l.close()
	if l.most != Window {
		t.Errorf("%d bytes were queued, want %d", l.most, Window)
	}
}

type failingWriter struct{ left int }

func (f *failingWriter) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

// TestReceiveFailingConsumer checks that a consumer that fails tells the sender and goes on draining.
func TestReceiveFailingConsumer(t *testing.T) {
	l := newLink(t)
	done := make(chan error)
	go func() { done <- Receive(l.back, 1, Stdout, l.inbox, &failingWriter{left: 100}) }()
	const total = 4 * Window // would get stuck without credit
	if err := Send(l.w, 1, Stdout, l.gate, io.LimitReader(rand.NewChaCha8([32]byte{}), total)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != io.ErrShortWrite {
		t.Errorf("Receive = %v, want the consumer's %v", err, io.ErrShortWrite)
	}
	<-l.hung
	l.close()
}

// TestReceiveOutlivesLink checks that what arrived is delivered although credit can no longer be given.
func TestReceiveOutlivesLink(t *testing.T) {
	r, w := io.Pipe()
	r.Close()
	b := NewInbox()
	if err := b.Put(make([]byte, Window)); err != nil {
		t.Fatal(err)
	}
	b.EOF()
	var got bytes.Buffer
	if err := Receive(NewWriter(w), 1, Stdout, b, &got); err != nil || got.Len() != Window {
		t.Errorf("Receive = %v, %d bytes, want %d", err, got.Len(), Window)
	}
}
