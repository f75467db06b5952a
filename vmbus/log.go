package vmbus

import (
	"sync"
	"time"
)

// A guest can repeat any mistake as fast as it can post. Each place that logs
// may write logBurst lines at once and one a second thereafter.
const (
	logBurst    = 10
	logInterval = time.Second
)

// A siteLog bounds lines per format string, that is, per place in the code: a
// guest that repeats one mistake does not hide the report of another.
type siteLog struct {
	logf func(format string, args ...any)

	mu    sync.Mutex
	sites map[string]*logSite
}

type logSite struct {
	tokens  int
	last    time.Time
	dropped int
}

func (l *siteLog) printf(format string, args ...any) {
	if l.logf == nil {
		return
	}
	now := time.Now()
	l.mu.Lock()
	s := l.sites[format]
	if s == nil {
		s = &logSite{tokens: logBurst, last: now}
		l.sites[format] = s
	}
	if n := int(now.Sub(s.last) / logInterval); n > 0 {
		s.tokens = min(s.tokens+n, logBurst)
		s.last = now
	}
	if s.tokens == 0 {
		s.dropped++
		l.mu.Unlock()
		return
	}
	s.tokens--
	dropped := s.dropped
	s.dropped = 0
	l.mu.Unlock()
	if dropped > 0 {
		l.logf("vmbus: %d lines like the next were left out", dropped)
	}
	l.logf("vmbus: "+format, args...)
}
