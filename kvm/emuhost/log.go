package emuhost

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// maxLog bounds each of an instance's two log files, in bytes. What a guest of the emulated host can make its kernel
// say has no bound.
const maxLog = 512 << 10

// logFile is a log that keeps between maxLog and twice that of its newest bytes, in a file and one with ".1" added.
type logFile struct {
	path string

	mu   sync.Mutex
	f    *os.File // under mu; nil after a failure
	n    int64    // under mu
	tail []byte   // under mu; the newest bytes
}

const logTail = 16 << 10 // holds a kernel's panic with its trace

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return l, nil
}

func (l *logFile) open() (err error) {
	l.f, err = os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	l.n = 0
	return err
}

// Write never fails: a full disk must not stop the emulated host.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, p...)
	if len(l.tail) > logTail {
		l.tail = append([]byte(nil), l.tail[len(l.tail)-logTail:]...)
	}
	if l.f == nil {
		return len(p), nil
	}
	if l.n+int64(len(p)) > maxLog {
		l.f.Close()
		l.f = nil
		if os.Rename(l.path, l.path+".1") != nil || l.open() != nil {
			return len(p), nil
		}
	}
	n, _ := l.f.Write(p)
	l.n += int64(n)
	return len(p), nil
}

func (l *logFile) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}

// lastLines returns the newest lines in one, or the one line that says why, should a kernel's trace follow it.
func (l *logFile) lastLines() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	const most = 3
	var ls []string
	for line := range strings.Lines(string(l.tail)) {
		line = strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, line))
		// QEMU's remarks about CPU features that TCG lacks are known and harmless.
		if strings.Contains(line, "Kernel panic") || strings.Contains(line, "hvpost: emulated host:") {
			return line
		}
		if line != "" && !strings.Contains(line, "TCG doesn't support requested feature") {
			ls = append(ls, line)
		}
	}
	if len(ls) > most {
		ls = ls[len(ls)-most:]
	}
	return strings.Join(ls, " | ")
}

// pipeTo makes a descriptor for a child whose output goes to the log, through a goroutine that ends when every copy
// of the descriptor is closed; done tells.
func (l *logFile) pipeTo() (w *os.File, done <-chan struct{}, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("log: %w", err)
	}
	ch := make(chan struct{})
	go func() {
		defer close(ch)
		defer r.Close()
		_, _ = io.Copy(l, r) // ends with the pipe
	}()
	return w, ch, nil
}
