package synic

import (
	"sync"
	"time"
)

// A guest can repeat any mistake at the speed of its traps. These bound the
// lines it can make us write: a burst that tells the story of one failure,
// then one line a second.
const (
	logBurst    = 20
	logInterval = time.Second
)

// A logger writes lines at a bounded rate.
type logger struct {
	logf func(format string, args ...any)

	mu      sync.Mutex
	tokens  int
	last    time.Time
	dropped int
}

func newLogger(logf func(string, ...any)) *logger {
	return &logger{logf: logf, tokens: logBurst, last: time.Now()}
}

// printf must not be called with a VP's lock held: logf may be slow.
func (l *logger) printf(format string, args ...any) {
	if l.logf == nil {
		return
	}
	l.mu.Lock()
	if n := int(time.Since(l.last) / logInterval); n > 0 {
		l.tokens = min(l.tokens+n, logBurst)
		l.last = l.last.Add(time.Duration(n) * logInterval)
	}
	if l.tokens == 0 {
		l.dropped++
		l.mu.Unlock()
		return
	}
	l.tokens--
	dropped := l.dropped
	l.dropped = 0
	l.mu.Unlock()
	if dropped > 0 {
		l.logf("%d lines like the next were left out", dropped)
	}
	l.logf(format, args...)
}
