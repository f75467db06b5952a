package agent

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// shutdownGrace is what a command gets between SIGTERM and SIGKILL when the
// guest is told to go down. Hyper-V's shutdown integration component gives the
// guest far longer.
const shutdownGrace = 5 * time.Second

// Process 1 is told to end the machine by signals: busybox's, because programs
// in images know them, and those of systemd(1) (from SIGRTMIN+3, which is 37).
// The kernel sends SIGINT for Ctrl-Alt-Del and SIGPWR for a failing supply.
var shutdownSignals = map[syscall.Signal]string{
	unix.SIGTERM: "reboot", unix.SIGUSR1: "halt", unix.SIGUSR2: "poweroff",
	unix.SIGINT: "reboot", unix.SIGPWR: "poweroff",
	37: "halt", 38: "poweroff", 39: "reboot",
}

// Shutdown asks process 1 to end the machine: "poweroff", "reboot" or "halt".
// The command in the guest gets a SIGTERM and time to end first. With force the
// machine ends at once, without a word to anybody, but for the disks.
func Shutdown(kind string, force bool) error {
	if force {
		unix.Sync()
		return os.NewSyscallError("reboot", unix.Reboot(rebootCmd(kind)))
	}
	sig := map[string]syscall.Signal{"poweroff": unix.SIGUSR2, "reboot": unix.SIGTERM, "halt": unix.SIGUSR1}[kind]
	if sig == 0 {
		return fmt.Errorf("no way to %q", kind)
	}
	return os.NewSyscallError("kill", unix.Kill(1, sig))
}

func rebootCmd(kind string) int {
	switch kind {
	case "reboot":
		return unix.LINUX_REBOOT_CMD_RESTART
	case "halt":
		return unix.LINUX_REBOOT_CMD_HALT
	}
	return unix.LINUX_REBOOT_CMD_POWER_OFF
}

// handleShutdown takes the signals until stop is called.
func (s *session) handleShutdown() (stop func()) {
	// Ctrl-Alt-Del becomes a signal to us instead of a reset. In a container
	// that is not ours to say, nor to be had.
	unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	ch := make(chan os.Signal, 8)
	for sig := range shutdownSignals {
		signal.Notify(ch, sig)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case sig := <-ch:
				s.askShutdown(shutdownSignals[sig.(syscall.Signal)], done)
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
		<-ended
	}
}

// askShutdown ends the command, kindly and then not. The first request decides
// how the machine ends.
func (s *session) askShutdown(kind string, done <-chan struct{}) {
	s.mu.Lock()
	first := s.shutdown == ""
	if first {
		s.shutdown = kind
		close(s.shutdownAsked)
	}
	s.mu.Unlock()
	if !first {
		return
	}
	s.terminate(unix.SIGTERM)
	t := time.NewTimer(shutdownGrace)
	defer t.Stop()
	select {
	case <-t.C:
		s.terminate(unix.SIGKILL)
	case <-done:
	}
}

// terminate signals the command and all else there is.
func (s *session) terminate(sig unix.Signal) {
	s.signal(sig)
	s.signal(unix.SIGCONT) // a stopped process ends only when it runs again
	s.killAll(sig)
}

// shutdownKind returns how the machine was told to end, or "".
func (s *session) shutdownKind() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shutdown
}
