package chipset

import (
	"io"
	"sync"
)

// outputBuffer bounds what a guest can have waiting for a slow reader. A
// guest that prints faster than the reader takes loses what does not fit; it
// is never made to wait.
const outputBuffer = 1 << 20

// An Output carries bytes from virtual processors to a writer that may block.
type Output struct {
	w io.Writer

	mu   sync.Mutex
	buf  []byte
	lost uint64
	end  bool
	wake sync.Cond
	done chan struct{}
	err  error
}

// NewOutput starts carrying bytes to w.
func NewOutput(w io.Writer) *Output {
	o := &Output{w: w, done: make(chan struct{})}
	o.wake.L = &o.mu
	go o.carry()
	return o
}

// Byte queues one byte, or counts it as lost. It never blocks.
func (o *Output) Byte(b byte) {
	o.mu.Lock()
	if len(o.buf) >= outputBuffer {
		o.lost++
	} else {
		o.buf = append(o.buf, b)
		if len(o.buf) == 1 {
			o.wake.Signal()
		}
	}
	o.mu.Unlock()
}

func (o *Output) carry() {
	defer close(o.done)
	var spare []byte
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for len(o.buf) == 0 && !o.end {
			o.wake.Wait()
		}
		if len(o.buf) == 0 {
			return
		}
		out := o.buf
		o.buf = spare[:0]
		o.mu.Unlock()
		_, err := o.w.Write(out)
		o.mu.Lock()
		spare = out
		if err != nil {
			// The reader is gone. The guest goes on; so do the counters.
			o.err = err
			o.w = io.Discard
		}
	}
}

// Close waits until everything queued is written and returns how many bytes
// were lost and the first error of the writer.
func (o *Output) Close() (lost uint64, err error) {
	o.mu.Lock()
	o.end = true
	o.wake.Signal()
	o.mu.Unlock()
	<-o.done
	return o.lost, o.err
}
