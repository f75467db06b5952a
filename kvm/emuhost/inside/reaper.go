package inside

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper waits for all children: those it started, whose status someone wants, and orphans, which the kernel gives
// to PID 1.
type reaper struct {
	mu   sync.Mutex
	want map[int]chan<- syscall.WaitStatus // under mu; by process id
}

func newReaper() *reaper {
	r := &reaper{want: map[int]chan<- syscall.WaitStatus{}}
	ch := make(chan os.Signal, 1) // one pending signal stands for any number of children
	signal.Notify(ch, unix.SIGCHLD)
	go func() {
		for range ch {
			r.reap()
		}
	}()
	return r
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c := r.want[pid]; c != nil {
			delete(r.want, pid)
			c <- ws // has room for it
		}
	}
}

// start runs fork, which returns a child's process id, and promises the child's status. Children that end before
// start returns are not missed, because none is reaped meanwhile.
func (r *reaper) start(fork func() (pid int, err error)) (<-chan syscall.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return nil, err
	}
	c := make(chan syscall.WaitStatus, 1)
	r.want[pid] = c
	return c, nil
}
