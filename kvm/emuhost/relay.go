package emuhost

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost/wire"
)

// maxQueued bounds what waits for one client, in payload bytes: the windows of its two output streams, and room for
// control frames. Flow control between the ends keeps within it, so more is PID 1's mistake.
const maxQueued = 2*wire.Window + 64<<10

// relay is a session as the daemon sees it: a client's connection and its number on the link. Payloads pass unread.
type relay struct {
	mu     sync.Mutex
	cond   sync.Cond
	queue  []wire.Frame // under mu; for the client, payloads owned
	queued int          // under mu; bytes of payload
	last   bool         // under mu; the queue's last frame is the session's
	gone   bool         // under mu; the client is

	done chan struct{} // closed when everything for the client has been written, or it is gone
}

func newRelay() *relay {
	r := &relay{done: make(chan struct{})}
	r.cond.L = &r.mu
	return r
}

// put queues a frame for the client; it never waits. It returns false when the queue is full.
func (r *relay) put(f wire.Frame) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone || r.last {
		return true
	}
	if r.queued+len(f.Payload) > maxQueued {
		return false
	}
	f.Session = 0 // the client's connection has only one
	f.Payload = append([]byte(nil), f.Payload...)
	r.queue = append(r.queue, f)
	r.queued += len(f.Payload)
	r.last = f.Type == wire.TypeExit
	r.cond.Signal()
	return true
}

// take waits for the next frame for the client; false is the end.
func (r *relay) take() (wire.Frame, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) == 0 && !r.gone && !r.last {
		r.cond.Wait()
	}
	if r.gone || len(r.queue) == 0 {
		return wire.Frame{}, false
	}
	f := r.queue[0]
	r.queue = r.queue[1:]
	r.queued -= len(f.Payload)
	return f, true
}

// drop forgets the client.
func (r *relay) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone, r.queue, r.queued = true, nil, 0
	r.cond.Signal()
}

// readLink hands PID 1's frames to the sessions until the link ends.
func (d *daemon) readLink(frames *wire.Reader) {
	for {
		f, err := frames.Next()
		if err != nil {
			select {
			case <-d.stopCh:
			case <-d.qemu.done: // whose watcher has the better reason
			default:
				// QEMU closes the link when it ends; which of the two is seen first is chance.
				if err != io.EOF && !errors.Is(err, unix.ECONNRESET) {
					d.stop(fmt.Errorf("link: %w", err))
				}
			}
			return
		}
		d.mu.Lock()
		r := d.sessions[f.Session]
		if r != nil && f.Type == wire.TypeExit {
			d.removeSession(f.Session)
		}
		d.mu.Unlock()
		if r != nil && !r.put(f) {
			d.stop(fmt.Errorf("PID 1 sent more than session %d may hold", f.Session))
			return
		}
	}
}

// removeSession takes a session out of the table. The mutex is held.
func (d *daemon) removeSession(id uint32) {
	delete(d.sessions, id)
	if len(d.sessions) == 0 && d.idle != nil && !d.closing {
		d.idle.Reset(d.cfg.IdleTimeout)
	}
}

// addSession makes a session, unless the daemon ends.
func (d *daemon) addSession() (uint32, *relay) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return 0, nil
	}
	for {
		d.next++
		if _, used := d.sessions[d.next]; !used && d.next != 0 {
			break
		}
	}
	r := newRelay()
	d.sessions[d.next] = r
	select {
	case d.busy <- struct{}{}:
	default:
	}
	d.ran++
	if d.idle != nil {
		d.idle.Stop()
	}
	return d.next, r
}

// endSessions tells every client that the emulated host ends.
func (d *daemon) endSessions(why error) []*relay {
	text := "the emulated host was shut down"
	if why != nil {
		text = fmt.Sprintf("the emulated host failed: %v; log: %s", why, d.inst.log())
		d.logf("%v", why)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var ended []*relay
	for id, r := range d.sessions {
		ended = append(ended, r)
		if !r.put(wire.JSON(0, wire.TypeExit, wire.Exit{Code: wire.CodeHost, Error: wire.Cut(text)})) {
			r.drop()
		}
		delete(d.sessions, id)
	}
	return ended
}

// accept serves clients until the listener is closed.
func (d *daemon) accept(l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			select {
			case <-d.stopCh:
			default:
				d.stop(fmt.Errorf("socket: %w", err))
			}
			return
		}
		d.mu.Lock()
		if d.closing {
			d.mu.Unlock()
			c.Close()
			return
		}
		d.conns[c] = struct{}{}
		d.clients.Add(1)
		d.mu.Unlock()
		go func() {
			defer d.clients.Done()
			if err := d.client(c); err != nil && err != io.EOF {
				d.logf("client: %v", err)
			}
			c.Close()
			d.mu.Lock()
			delete(d.conns, c)
			d.mu.Unlock()
		}()
	}
}

// client serves one connection: a greeting, then questions, or one session.
func (d *daemon) client(c *net.UnixConn) error {
	if err := checkPeer(c); err != nil {
		return err
	}
	r, w := wire.NewReader(c), wire.NewWriter(c)
	f, err := r.Next()
	if err != nil {
		return err
	}
	var h wire.Hello
	if f.Type != wire.TypeHello {
		return fmt.Errorf("%v instead of hello", f.Type)
	}
	if err := f.Decode(&h); err != nil {
		return err
	}
	if err := w.Write(wire.JSON(0, wire.TypeHello, wire.Hello{Version: wire.Version, Kernel: d.kernel, Name: d.cfg.Name})); err != nil {
		return err
	}
	for {
		f, err := r.Next()
		if err != nil {
			return err
		}
		switch f.Type {
		case wire.TypeStatus:
			if err := w.Write(wire.JSON(0, wire.TypeStatus, d.status())); err != nil {
				return err
			}
		case wire.TypeShutdown:
			// Of any version, so that a newer program can end an older daemon.
			d.stop(nil)
		case wire.TypeExec:
			if h.Version != wire.Version {
				return fmt.Errorf("protocol %d, want %d", h.Version, wire.Version)
			}
			return d.session(f, r, w, c)
		default:
			return fmt.Errorf("unexpected %v", f.Type)
		}
	}
}

// session relays between a client and PID 1. The first frame has been read.
func (d *daemon) session(f wire.Frame, r *wire.Reader, w *wire.Writer, c *net.UnixConn) error {
	id, rel := d.addSession()
	if rel == nil {
		return w.Write(wire.JSON(0, wire.TypeExit, wire.Exit{Code: wire.CodeHost, Error: "the emulated host was shut down"}))
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(rel.done)
		for {
			f, ok := rel.take()
			if !ok {
				break
			}
			if w.Write(f) != nil {
				break // the reader below meets the same end
			}
		}
		// All said. The client closes when it has read it; a full close now could cost it the end.
		_ = c.CloseWrite()
	})
	for {
		switch f.Type {
		case wire.TypeExec, wire.TypeData, wire.TypeEOF, wire.TypeCredit, wire.TypeSignal, wire.TypeResize, wire.TypeKill:
		default:
			rel.drop()
			_ = d.link.Write(wire.Frame{Session: id, Type: wire.TypeKill})
			return fmt.Errorf("unexpected %v in a session", f.Type)
		}
		f.Session = id
		if err := d.link.Write(f); err != nil {
			return nil // the emulated host ends, as everyone will hear
		}
		var err error
		if f, err = r.Next(); err != nil {
			rel.drop()
			// Unknown by now if the command has ended; PID 1 does not mind.
			_ = d.link.Write(wire.Frame{Session: id, Type: wire.TypeKill})
			if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
				err = nil
			}
			return err
		}
	}
}

// checkPeer refuses other users, should the directory's mode be changed.
func checkPeer(c *net.UnixConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var e error
	if err := rc.Control(func(fd uintptr) { cred, e = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if e != nil {
		return e
	}
	if int(cred.Uid) != os.Geteuid() && cred.Uid != 0 {
		return fmt.Errorf("connection of user %d refused", cred.Uid)
	}
	return nil
}
