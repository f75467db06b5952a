package inside

import (
	"encoding/json"
	"fmt"
	"sync"

	"github.com/hvpost/hvpost/kvm/emuhost/wire"
)

// maxSessions bounds commands that run or wait for a view. Each waiting one costs its request (a few kilobytes as
// a rule, wire.MaxRequest at worst).
const maxSessions = 1024

// server owns the session table. The goroutine in serve reads the link and never waits for a session.
type server struct {
	w     *wire.Writer
	xfer  string
	views chan int // numbers of the views nobody uses
	reap  *reaper

	mu       sync.Mutex
	sessions map[uint32]*session // under mu
}

func newServer(w *wire.Writer, views int, xfer string) *server {
	s := &server{w: w, xfer: xfer, views: make(chan int, views), reap: newReaper(), sessions: map[uint32]*session{}}
	for i := range views {
		s.views <- i
	}
	return s
}

// serve handles frames until the daemon asks for the end (nil) or the link fails.
func (s *server) serve(r *wire.Reader) error {
	for {
		f, err := r.Next()
		if err != nil {
			return fmt.Errorf("link: %w", err)
		}
		if f.Type == wire.TypeShutdown {
			return nil // power-off ends all commands at once
		}
		s.mu.Lock()
		c := s.sessions[f.Session]
		s.mu.Unlock()
		if c == nil {
			if f.Type == wire.TypeExec {
				s.open(f)
			}
			continue // for a session that has just ended
		}
		c.take(f)
	}
}

// open makes the session of a first Exec frame.
func (s *server) open(f wire.Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := newSession(s, f.Session)
	s.sessions[f.Session] = c
	if len(s.sessions) > maxSessions {
		c.refuse(fmt.Errorf("more than %d commands at once", maxSessions))
		return
	}
	c.take(f)
}

// close takes a session out of the table and tells the other end how it ended, which is the last of it.
func (s *server) close(id uint32, e wire.Exit) {
	s.mu.Lock()
	delete(s.sessions, id)
	s.mu.Unlock()
	e.Error = wire.Cut(e.Error)
	if p, err := json.Marshal(e); err == nil {
		// When the link fails, serve ends the machine.
		_ = s.w.Write(wire.Frame{Session: id, Type: wire.TypeExit, Payload: p})
	}
}
