package inside

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost/wire"
)

// session is one command, from its request to its exit.
type session struct {
	srv   *server
	id    uint32
	req   []byte // the serve goroutine's; nil once run started
	began bool   // the serve goroutine's

	stdin  *wire.Inbox
	gates  [3]*wire.Gate // Stdout and Stderr
	killed chan struct{} // closed by kill
	once   sync.Once     // for killed

	mu    sync.Mutex
	err   error    // under mu; the first reason for not going on
	pidfd int      // under mu; -1 unless the command runs
	group string   // under mu; control group, as a path
	pty   *os.File // under mu; nil without a terminal
	out   [3]*os.File
	shut  [3]bool // under mu; the client wants no more of this stream
}

func newSession(s *server, id uint32) *session {
	return &session{
		srv: s, id: id, stdin: wire.NewInbox(), killed: make(chan struct{}), pidfd: -1,
		gates: [3]*wire.Gate{wire.Stdout: wire.NewGate(), wire.Stderr: wire.NewGate()},
	}
}

// take handles one frame, or ends the session.
func (c *session) take(f wire.Frame) {
	if err := c.handle(f); err != nil {
		c.refuse(err)
	}
}

// refuse ends a session because of what the other end sent. Only serve calls it.
func (c *session) refuse(err error) {
	c.fail(err)
	if !c.began { // else its own goroutine ends it
		c.began = true
		go c.end(wire.CodeHost)
	}
}

// handle takes one frame. It never waits for the command. An error ends the session.
func (c *session) handle(f wire.Frame) error {
	switch f.Type {
	case wire.TypeExec:
		if c.began {
			return errors.New("second command in a session")
		}
		if len(c.req)+len(f.Payload) > wire.MaxRequest {
			return fmt.Errorf("arguments and environment exceed %d bytes", wire.MaxRequest)
		}
		c.req = append(c.req, f.Payload...)
		if f.Stream == wire.MoreFollows {
			return nil
		}
		q, err := wire.DecodeRequest(c.req)
		if err != nil {
			return err
		}
		c.req, c.began = nil, true
		go c.run(q)
	case wire.TypeData:
		if f.Stream != wire.Stdin {
			return fmt.Errorf("data for stream %d", f.Stream)
		}
		return c.stdin.Put(f.Payload)
	case wire.TypeEOF:
		if f.Stream == wire.Stdin {
			c.stdin.EOF()
		} else {
			c.hangUp(f.Stream)
		}
	case wire.TypeCredit:
		n, err := f.Uint32()
		if err != nil {
			return err
		}
		if g := c.gates[f.Stream]; g != nil {
			return g.Give(n)
		}
	case wire.TypeSignal:
		n, err := f.Uint32()
		if err != nil {
			return err
		}
		c.signal(n)
	case wire.TypeResize:
		rows, cols, err := f.Size()
		if err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pty != nil {
			// Only fails on a terminal that is just gone.
			_ = setSize(c.pty, rows, cols)
		}
	case wire.TypeKill:
		if !c.began {
			return errors.New("given up before it was asked for")
		}
		c.kill()
	default:
		return fmt.Errorf("unexpected %v", f.Type)
	}
	return nil
}

// signal delivers a signal to the command. The two that a terminal's keys make go to its process group, as there.
func (c *session) signal(n uint32) {
	if n == 0 || n > 64 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd >= 0 {
		var flags int
		if n == uint32(unix.SIGINT) || n == uint32(unix.SIGQUIT) {
			flags = unix.PIDFD_SIGNAL_PROCESS_GROUP
		}
		err := unix.PidfdSendSignal(c.pidfd, unix.Signal(n), nil, flags) // it may have ended
		if err == unix.EINVAL && flags != 0 {                            // before Linux 6.9
			_ = unix.PidfdSendSignal(c.pidfd, unix.Signal(n), nil, 0)
		}
		return
	}
	// It waits for a view, or has ended. Signals that end a process end the wait.
	switch unix.Signal(n) {
	case unix.SIGINT, unix.SIGTERM, unix.SIGKILL, unix.SIGQUIT, unix.SIGHUP:
		c.once.Do(func() { close(c.killed) })
	}
}

// hangUp closes our end of an output stream, so that the command learns of it by SIGPIPE.
func (c *session) hangUp(s wire.Stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut[s] = true
	c.gates[s].Close()
	if f := c.out[s]; f != nil {
		f.Close() // Send, if it reads, gets an error and ends
	}
}

// fail notes why the session cannot go on, and kills it.
func (c *session) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.kill()
}

// kill ends everything the command started, now or as soon as it starts.
func (c *session) kill() {
	c.once.Do(func() { close(c.killed) })
	c.stdin.Abort()
	c.gates[wire.Stdout].Close()
	c.gates[wire.Stderr].Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.group != "" {
		// Fails only when the group is gone, and so is all that was in it.
		_ = os.WriteFile(c.group+"/cgroup.kill", []byte("1"), 0)
	}
}

// end closes the session with a code, or with the failure noted.
func (c *session) end(code int) {
	c.mu.Lock()
	e := wire.Exit{Code: code}
	if c.err != nil {
		e.Error = c.err.Error()
		e.Code = wire.CodeHost
		var coded *codeError
		if errors.As(c.err, &coded) {
			e.Code = coded.code
		}
	}
	c.mu.Unlock()
	c.srv.close(c.id, e)
}

// codeError is a failure with an exit code of its own.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

// run is the session's goroutine once its request is complete.
func (c *session) run(q *wire.Request) {
	// The thread enters a mount namespace and must not be used by anyone else; it ends with the goroutine.
	runtime.LockOSThread()
	view, err := c.takeView(q)
	if err != nil {
		c.fail(err)
		c.end(wire.CodeHost)
		return
	}
	code, pumps, err := c.command(q, view)
	if err != nil {
		c.fail(err)
	}
	if err := unmountView(); err != nil {
		fmt.Printf("hvpost: emulated host: %v\n", err)
	}
	c.srv.views <- view
	// The view is free already: a client that does not take its output holds up no other.
	if pumps != nil {
		pumps.Wait()
	}
	c.end(code)
}

// takeView waits for a view and mounts it.
func (c *session) takeView(q *wire.Request) (int, error) {
	var busy []int
	defer func() {
		for _, i := range busy {
			c.srv.views <- i
		}
	}()
	for {
		select {
		case i := <-c.srv.views:
			err := mountView(i, c.srv.xfer, int(q.UID), int(q.GID))
			if err == nil {
				return i, nil
			}
			if e := unmountView(); e != nil {
				err = errors.Join(err, e)
			}
			busy = append(busy, i)
			// EBUSY: the 9p channel of a command that ended is not closed yet. Another one will do.
			if !errors.Is(err, unix.EBUSY) || len(busy) == cap(c.srv.views) {
				return 0, err
			}
		case <-c.killed:
			return 0, errors.New("interrupted before it was started")
		}
	}
}

// command runs the request in the mounted view, until nothing of it is left, and returns its exit code. The pumps
// may still have output to deliver.
func (c *session) command(q *wire.Request, view int) (code int, pumps *sync.WaitGroup, err error) {
	fd, err := openInRoot(q.Dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return 0, nil, &codeError{wire.CodeNoPermission, fmt.Errorf("working directory %s: %w", q.Dir, err)}
	}
	unix.Close(fd)
	path, err := lookPath(q.Argv[0], q.Dir, q.Env)
	if err != nil {
		return 0, nil, startError(q.Argv[0], err)
	}
	group := fmt.Sprintf("%s/view%d", cgroupDir, view)
	if err := os.Mkdir(group, 0o755); err != nil {
		return 0, nil, fmt.Errorf("control group: %w", err)
	}
	defer func() {
		if e := emptyGroup(group); e != nil && err == nil {
			err = e
		}
	}()
	groupFD, err := unix.Open(group, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("control group: %w", err)
	}
	defer unix.Close(groupFD)

	io, err := c.openStreams(q)
	if err != nil {
		return 0, nil, err
	}
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: q.Dir, Env: q.Env, Files: io.child[:],
		Sys: &syscall.SysProcAttr{
			Chroot:      viewRoot,
			Credential:  &syscall.Credential{Uid: q.UID, Gid: q.GID, Groups: q.Groups},
			Setsid:      true, // a process group of its own too
			Setctty:     q.TTY,
			Ctty:        0,
			UseCgroupFD: true,
			CgroupFD:    groupFD,
			PidFD:       &pidfd,
		},
	}
	unix.Umask(int(q.Umask)) // this thread's own since it has its own mount namespace
	status, err := c.srv.reap.start(func() (int, error) { return syscall.ForkExec(path, q.Argv, attr) })
	unix.Umask(0o022)
	io.closeChild()
	if err != nil {
		io.closeOwn()
		return 0, nil, startError(q.Argv[0], err)
	}
	c.mu.Lock()
	c.pidfd, c.group, c.pty, c.out = pidfd, group, io.pty, io.out
	for s, shut := range c.shut {
		if shut && c.out[s] != nil {
			c.out[s].Close()
		}
	}
	c.mu.Unlock()
	select {
	case <-c.killed: // before there was a group to kill
		c.kill()
	default:
	}
	_ = c.srv.w.Write(wire.Frame{Session: c.id, Type: wire.TypeStarted})
	pumps, stdinDone := c.pump(io)
	ws := <-status

	c.mu.Lock()
	c.group = "" // the group is killed here, and removed
	c.pidfd = -1
	c.mu.Unlock()
	unix.Close(pidfd)
	if err := emptyGroup(group); err != nil {
		return 0, pumps, err
	}
	c.stdin.Abort()
	// Ends a write that waits for a reader on a terminal, which unlike a pipe does not break.
	_ = io.in.SetWriteDeadline(time.Unix(1, 0))
	<-stdinDone
	if ws.Signaled() {
		return 128 + int(ws.Signal()), pumps, nil
	}
	return ws.ExitStatus(), pumps, nil
}

// startError gives a command that could not be executed the shell's code for it.
func startError(name string, err error) error {
	code := wire.CodeNoPermission
	if errors.Is(err, unix.ENOENT) || errors.Is(err, errNotFound) {
		code = wire.CodeNotFound
	}
	return &codeError{code, fmt.Errorf("%s: %w", name, err)}
}

// emptyGroup kills all that is in a control group, waits until it has gone, and removes the group. A group that is
// not there is empty.
func emptyGroup(group string) error {
	ev, err := os.Open(group + "/cgroup.events")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	defer ev.Close()
	if err := os.WriteFile(group+"/cgroup.kill", []byte("1"), 0); err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	fd := int(ev.Fd())
	var buf [256]byte
	for {
		n, err := unix.Pread(fd, buf[:], 0)
		if err != nil {
			return fmt.Errorf("control group: %w", err)
		}
		if !populated(string(buf[:n])) {
			break
		}
		// The kernel signals each change of the file since it was read last as an exceptional condition.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("control group: %w", err)
		}
	}
	if err := unix.Rmdir(group); err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	return nil
}
