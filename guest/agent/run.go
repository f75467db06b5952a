package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/link"
)

const (
	// orphanGrace is how long the output stays open after the command's own
	// end when another process still holds it: time for a background filter
	// to finish its last lines, no time for a daemon to keep the VM alive.
	orphanGrace = 500 * time.Millisecond

	// defaultPath is where commands are looked for when the job sets no PATH.
	defaultPath = "/bin:/sbin:/usr/bin:/usr/sbin"

	// maxPending bounds the signals kept for a command that does not run yet.
	maxPending = 64

	codeAgent    = 125 // the agent failed
	codeExec     = 126 // found, not executable
	codeNotFound = 127
)

// A session is one command's run over one link.
type session struct {
	conn  link.Conn
	guest *link.Guest
	bye   chan struct{} // closed when the host is done, or the link is down
	grace time.Duration // orphanGrace, shorter in tests

	// reap waits for the command; killAll signals every process there is.
	reap    func(pid int) unix.WaitStatus
	killAll func(unix.Signal)

	shutdownAsked chan struct{} // closed at the first request

	mu       sync.Mutex
	job      *link.Job     // protected by mu: nil before it is known
	pid      int           // protected by mu: the command, 0 when there is none
	pending  []unix.Signal // protected by mu: asked for before the command ran
	pty      *os.File      // protected by mu: master side, nil without
	outputs  [3]*os.File   // protected by mu: our ends of stdout and stderr
	shutdown string        // protected by mu
}

// newSession starts to serve the link. start gets the job that the host sends.
func newSession(conn link.Conn, start func(link.Job)) *session {
	s := &session{
		conn: conn, bye: make(chan struct{}), grace: orphanGrace, shutdownAsked: make(chan struct{}),
		reap: reapOne, killAll: func(unix.Signal) {},
	}
	s.guest = link.NewGuest(conn, link.GuestHandlers{
		Start:  start,
		Signal: func(n int) { s.signal(unix.Signal(n)) },
		Resize: s.resize,
		Closed: s.closeOutput,
	})
	go func() {
		defer close(s.bye)
		s.guest.Run()
	}()
	return s
}

// close ends the link and waits for its goroutine.
func (s *session) close() {
	s.conn.Close()
	<-s.bye
}

func (s *session) setJob(j *link.Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.job = j
}

// jobPoweroff reports whether the guest goes down after the result; it does
// when there was no job.
func (s *session) jobPoweroff() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.job == nil || s.job.Poweroff
}

// signal passes a signal to the command's process group, or keeps it until
// there is one.
func (s *session) signal(sig unix.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid != 0 {
		unix.Kill(-s.pid, sig)
	} else if len(s.pending) < maxPending {
		s.pending = append(s.pending, sig)
	}
}

func (s *session) resize(rows, cols uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pty != nil {
		setWinsize(s.pty, rows, cols)
	} else if s.job != nil {
		s.job.Rows, s.job.Cols = rows, cols
	}
}

// closeOutput lets the command see that nobody reads a stream any more.
func (s *session) closeOutput(st link.Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch f := s.outputs[st]; {
	case s.pty != nil && s.pid != 0:
		unix.Kill(-s.pid, unix.SIGHUP) // as when a terminal goes away
	case s.pty == nil && f != nil:
		f.Close()
	}
}

// running records the command and sends it what was asked for before.
func (s *session) running(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid = pid
	for _, sig := range s.pending {
		unix.Kill(-pid, sig)
	}
	s.pending = nil
}

// gone forgets the command before its process number can be another's.
func (s *session) gone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid = 0
}

// fail ends both output streams and returns the result of an agent that could
// not run the command.
func (s *session) fail(text string) link.Exit {
	return s.end(link.Exit{Code: codeAgent, Reason: link.ReasonAgent, Error: text, Shutdown: s.shutdownKind()})
}

// end closes both output streams in front of the result. A broken link shows
// when the result is sent.
func (s *session) end(e link.Exit) link.Exit {
	s.guest.EndOutput(link.Stdout)
	s.guest.EndOutput(link.Stderr)
	return e
}

// refuse is the end of a command that could not be started: as a shell would
// do it, a line on its stderr and a code.
func (s *session) refuse(code int, reason, text string) link.Exit {
	s.guest.PumpOutput(link.Stderr, strings.NewReader("hvpost: "+text+"\n"))
	return s.end(link.Exit{Code: code, Reason: reason, Error: text, Shutdown: s.shutdownKind()})
}

// environ completes the job's environment.
func environ(job *link.Job) []string {
	env := append([]string(nil), job.Env...)
	home := "/root"
	if job.UID != 0 {
		home = "/"
	}
	add := [][2]string{{"PATH", defaultPath}, {"HOME", home}}
	if job.TTY {
		add = append(add, [2]string{"TERM", "linux"})
	}
	for _, d := range add {
		if _, ok := getenv(env, d[0]); !ok {
			env = append(env, d[0]+"="+d[1])
		}
	}
	return env
}

// getenv returns the last value of key, which is the one programs see.
func getenv(env []string, key string) (v string, ok bool) {
	for _, e := range env {
		if k, val, found := strings.Cut(e, "="); found && k == key {
			v, ok = val, true
		}
	}
	return v, ok
}

// lookup finds the program as a shell does: a name with a slash is a path,
// relative to cwd; another one is looked for in path.
func lookup(name, cwd, path string) (string, error) {
	abs := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(cwd, p)
	}
	if strings.Contains(name, "/") {
		return abs(name), executable(abs(name))
	}
	if name == "" {
		return "", unix.ENOENT
	}
	var denied string
	for _, d := range filepath.SplitList(path) {
		if d == "" {
			d = "."
		}
		p := abs(filepath.Join(d, name))
		switch err := executable(p); {
		case err == nil:
			return p, nil
		case err == unix.EACCES && denied == "":
			denied = p
		}
	}
	if denied != "" {
		return denied, unix.EACCES
	}
	return "", unix.ENOENT
}

func executable(p string) error {
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EACCES
	}
	return unix.Access(p, unix.X_OK)
}

// run runs the job's command to its end. begun is called when it runs. Both
// output streams have ended when run returns.
func (s *session) run(job *link.Job, begun func()) link.Exit {
	argv := job.Argv
	if len(argv) == 0 {
		argv = []string{"sh"}
	}
	cwd := job.Cwd
	if cwd == "" {
		cwd = "/"
	}
	env := environ(job)
	path, _ := getenv(env, "PATH")
	prog, err := lookup(argv[0], cwd, path)
	switch {
	case err == unix.EACCES:
		return s.refuse(codeExec, link.ReasonExecFailed, argv[0]+": permission denied (not an executable file)")
	case err != nil && strings.Contains(argv[0], "/"):
		return s.refuse(codeNotFound, link.ReasonNotFound, fmt.Sprintf("%s: %v in the guest", argv[0], err))
	case err != nil:
		return s.refuse(codeNotFound, link.ReasonNotFound, fmt.Sprintf("%s: command not found in the guest (PATH=%s)", argv[0], path))
	}
	if st, err := os.Stat(cwd); err != nil || !st.IsDir() {
		return s.refuse(codeExec, link.ReasonExecFailed, fmt.Sprintf("working directory %s: not a directory in the guest", cwd))
	}
	std, err := s.openStdio(job)
	if err != nil {
		return s.fail(err.Error())
	}
	defer std.close()
	select {
	case <-s.shutdownAsked:
		return s.fail(s.shutdownKind() + " before the command ran")
	default:
	}
	pid, err := start(prog, argv, env, cwd, job, std)
	if err != nil {
		return s.startFailed(argv[0], prog, err)
	}
	std.closeChild()
	s.running(pid)
	s.guest.Started(boottime())

	var out sync.WaitGroup
	for st, f := range std.out {
		if f == nil {
			continue
		}
		out.Add(1)
		go func() {
			defer out.Done()
			s.guest.PumpOutput(link.Stream(st), &drainReader{f: f})
			f.Close()
		}()
	}
	go func() {
		s.guest.CopyInput(std.in)
		std.endInput()
	}()
	begun()

	ws := s.reap(pid)
	s.gone()
	drained := make(chan struct{})
	go func() { out.Wait(); close(drained) }()
	t := time.NewTimer(s.grace)
	select {
	case <-drained:
	case <-t.C:
		// Somebody else holds the streams. What is in them goes out, what
		// comes later does not.
		for _, f := range std.out {
			if f != nil {
				f.SetReadDeadline(time.Now())
			}
		}
		<-drained
	}
	t.Stop()
	return s.end(s.result(ws))
}

func (s *session) result(ws unix.WaitStatus) link.Exit {
	if ws.Signaled() {
		return link.Exit{
			Code: 128 + int(ws.Signal()), Reason: link.ReasonSignal, Signal: int(ws.Signal()),
			Core: ws.CoreDump(), Shutdown: s.shutdownKind(),
		}
	}
	return link.Exit{Code: ws.ExitStatus(), Reason: link.ReasonExit, Shutdown: s.shutdownKind()}
}

// start starts the program in a session of its own.
func start(prog string, argv, env []string, cwd string, job *link.Job, std *stdio) (int, error) {
	attr := &syscall.ProcAttr{
		Dir: cwd, Env: env,
		Files: []uintptr{uintptr(std.child[0]), uintptr(std.child[1]), uintptr(std.child[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: job.TTY},
	}
	if job.UID != 0 || job.GID != 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: job.UID, Gid: job.GID}
	}
	pid, err := syscall.ForkExec(prog, argv, attr)
	if err == syscall.ENOEXEC {
		// A script without "#!" is the shell's, as execvp(3) has it.
		if sh, serr := lookup("sh", cwd, defaultPath); serr == nil {
			pid, err = syscall.ForkExec(sh, append([]string{"sh", prog}, argv[1:]...), attr)
		}
	}
	return pid, err
}

// startFailed tells apart the ways in which execve fails.
func (s *session) startFailed(name, prog string, err error) link.Exit {
	switch {
	case errors.Is(err, syscall.ENOENT):
		// The file is there, lookup saw it: what is missing is what runs it.
		return s.refuse(codeNotFound, link.ReasonNotFound,
			fmt.Sprintf("%s: %s is there, its interpreter or dynamic loader is not: add it to the image or link the program statically", name, prog))
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE):
		return s.fail(fmt.Sprintf("start %s: %v", prog, err))
	}
	return s.refuse(codeExec, link.ReasonExecFailed, fmt.Sprintf("%s: cannot execute %s: %v", name, prog, err))
}

// A drainReader reads a stream until it ends or, once its file's read deadline
// has passed, until what was in it at that time is read.
type drainReader struct {
	f    *os.File
	left int // bytes, when draining
	last bool
}

func (d *drainReader) Read(p []byte) (int, error) {
	if !d.last {
		n, err := d.f.Read(p)
		if errors.Is(err, unix.EIO) {
			// The last process that had the terminal is gone.
			err = io.EOF
		}
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		d.last, d.left = true, pipeSize(d.f)
	}
	if d.left <= 0 {
		return 0, io.EOF
	}
	rc, err := d.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var rerr error
	if err := rc.Control(func(fd uintptr) { n, rerr = unix.Read(int(fd), p[:min(len(p), d.left)]) }); err != nil {
		return 0, err
	}
	if n <= 0 || rerr != nil {
		return 0, io.EOF // nothing left just now
	}
	d.left -= n
	return n, nil
}

// pipeSize returns the capacity in bytes of the pipe or terminal f.
func pipeSize(f *os.File) int {
	size := 64 << 10
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			if n, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil {
				size = n
			}
		})
	}
	return size
}
