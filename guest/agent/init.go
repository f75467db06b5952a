package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/link"
)

// byeTimeout bounds how long the result waits for the host's BYE before the
// guest goes down by itself. The host sends it when it has delivered all
// output, and usually ends the VM then.
const byeTimeout = 5 * time.Second

// IsInit reports whether this process is the first of a guest that the image
// builder made: process 1, with the job in the image or started as the
// kernel starts an init. Process 1 of a container is neither.
func IsInit() bool {
	if os.Getpid() != 1 {
		return false
	}
	if unix.Access(link.JobPath, unix.F_OK) == nil {
		return true
	}
	return filepath.Base(os.Args[0]) == "init"
}

// Main is the life of process 1. It does not return.
func Main() {
	a := &agent{
		jobPath:  link.JobPath,
		openLink: link.OpenGuest,
		reboot:   func(cmd int) error { return unix.Reboot(cmd) },
		mounts:   baseMounts,
	}
	a.main()
	// A kernel that cannot power off leaves us here, and a process 1 that
	// returns would be a panic.
	select {}
}

// An agent is process 1 with what surrounds it.
type agent struct {
	jobPath  string
	openLink func(cmdline string) (*link.GuestPort, error)
	reboot   func(cmd int) error
	mounts   []link.Mount

	s        *session
	warnings []string
}

func (a *agent) warnf(format string, args ...any) {
	w := fmt.Sprintf(format, args...)
	a.warnings = append(a.warnings, w)
	consolef("warning: %s", w)
}

// consolef prints a line where somebody may see it when the link is not there.
func consolef(format string, args ...any) {
	fd, err := unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	unix.Write(fd, fmt.Appendf(nil, "hvpost agent: "+format+"\n", args...))
}

func (a *agent) main() {
	what := "poweroff"
	func() {
		defer func() {
			if r := recover(); r != nil {
				buf := make([]byte, 4096)
				consolef("panic: %v\n%s", r, buf[:runtime.Stack(buf, false)])
			}
		}()
		what = a.live()
	}()
	unix.Sync()
	if err := a.reboot(rebootCmd(what)); err != nil {
		consolef("%s: %v", what, err)
	}
}

// live boots, runs the command and reports it; it returns how the machine is
// to end.
func (a *agent) live() string {
	began := boottime()
	for _, m := range a.mounts {
		if filled(m) {
			continue
		}
		if err := mount(m); err != nil {
			a.warnf("%v", err)
		}
	}
	devLinks()
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		a.warnf("kernel command line: %v", err)
	}
	conn, err := a.openLink(string(cmdline))
	if err != nil {
		consolef("%v: nobody to report to, powering off", err)
		return "poweroff"
	}
	jobs := make(chan link.Job, 1)
	a.s = newSession(conn, func(j link.Job) {
		select {
		case jobs <- j:
		default: // the host sends one job; a second changes nothing
		}
	})
	a.s.reap, a.s.killAll = reapAll, killAll
	stop := a.s.handleShutdown()
	defer stop()
	a.s.guest.Hello(hello(began, conn.Transport))

	exit := a.serve(jobs)
	if err := a.s.guest.Exit(exit); err != nil {
		consolef("result %+v not delivered: %v", exit, err)
	}
	if !a.s.jobPoweroff() && a.s.shutdownKind() == "" {
		// The host ends the VM, or somebody inside does.
		<-a.s.shutdownAsked
	} else {
		t := time.NewTimer(byeTimeout)
		defer t.Stop()
		select {
		case <-a.s.bye:
		case <-t.C:
		}
	}
	if kind := a.s.shutdownKind(); kind != "" {
		return kind
	}
	return "poweroff"
}

// serve gets the job, prepares the guest for it and runs it. It returns with
// both output streams ended.
func (a *agent) serve(jobs <-chan link.Job) (exit link.Exit) {
	defer func() {
		if r := recover(); r != nil {
			buf := make([]byte, 4096)
			consolef("panic: %v\n%s", r, buf[:runtime.Stack(buf, false)])
			exit = a.s.fail(fmt.Sprintf("agent panic: %v", r))
		}
	}()
	job, err := a.job(jobs)
	if err != nil {
		return a.s.fail(err.Error())
	}
	a.s.setJob(job)
	a.prepare(job)
	exit = a.s.run(job, func() {
		if job.Info || len(a.warnings) > 0 {
			info := link.Info{Warnings: a.warnings}
			if job.Info {
				info.Devices = vmbusDevices("/sys/bus/vmbus/devices")
			}
			a.s.guest.Info(info)
		}
	})
	a.settle(job)
	return exit
}

// job returns the job from the image or, without one, the host's.
func (a *agent) job(jobs <-chan link.Job) (*link.Job, error) {
	b, err := os.ReadFile(a.jobPath)
	if err == nil {
		j := new(link.Job)
		if err := json.Unmarshal(b, j); err != nil {
			return nil, fmt.Errorf("%s: %w", a.jobPath, err)
		}
		return j, nil
	}
	if !os.IsNotExist(err) {
		return nil, err
	}
	select {
	case j := <-jobs:
		return &j, nil
	case <-a.s.shutdownAsked:
		return nil, fmt.Errorf("%s before there was a job", a.s.shutdownKind())
	case <-a.s.bye:
		return nil, fmt.Errorf("the host left before it sent a job")
	}
}

// prepare makes the guest as the job wants it. What fails is a warning: the
// command will show whether it matters.
func (a *agent) prepare(job *link.Job) {
	var events *uevents
	if len(job.Wait) > 0 {
		// Before the modules, so that no event of theirs is missed.
		var err error
		if events, err = openUevents(); err != nil {
			a.warnf("device events: %v: devices in the job's wait list may come late", err)
		} else {
			defer events.close()
		}
	}
	for _, m := range job.Modules {
		if err := loadModule(m); err != nil {
			a.warnf("%v", err)
		}
	}
	host := job.Hostname
	if host == "" {
		host = "hvpost"
	}
	if err := unix.Sethostname([]byte(host)); err != nil {
		a.warnf("hostname: %v", err)
	}
	if job.TTY {
		if err := mount(link.Mount{Source: "devpts", Target: "/dev/pts", Type: "devpts", Options: "mode=0620,ptmxmode=0666"}); err != nil {
			a.warnf("%v", err)
		}
	}
	if err := linkUp("lo"); err != nil {
		a.warnf("%v", err)
	}
	if missing := waitDevices(job, events); len(missing) > 0 {
		a.warnf("not there in time: %s", strings.Join(missing, ", "))
	}
	if err := configureNet(job.Net, "/etc/resolv.conf"); err != nil {
		a.warnf("%v", err)
	}
	for _, m := range job.Mounts {
		if err := mount(m); err != nil {
			a.warnf("%v", err)
		}
	}
}

// settle brings what the command wrote to the disks. It comes before EXIT,
// because the host may end the VM at any moment after it.
func (a *agent) settle(job *link.Job) {
	if len(job.Mounts) == 0 {
		return
	}
	killAll(unix.SIGKILL)
	for i := len(job.Mounts) - 1; i >= 0; i-- {
		unix.Unmount(job.Mounts[i].Target, unix.MNT_DETACH)
	}
	unix.Sync()
}

func hello(began uint64, transport string) link.Hello {
	h := link.Hello{BoottimeNS: began, VPs: runtime.NumCPU(), Transport: transport}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Release = unix.ByteSliceToString(u.Release[:])
		h.Version = unix.ByteSliceToString(u.Version[:])
	}
	return h
}

// boottime returns CLOCK_BOOTTIME in ns.
func boottime() uint64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return uint64(ts.Nano())
}

// VMBusDevices lists the VMBus devices of this machine with their drivers. It
// fails when there is no VMBus.
func VMBusDevices() ([]link.Device, error) {
	const dir = "/sys/bus/vmbus/devices"
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	return vmbusDevices(dir), nil
}

// vmbusDevices lists the VMBus devices under dir in sysfs.
func vmbusDevices(dir string) []link.Device {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil // no VMBus, no devices
	}
	var ds []link.Device
	for _, n := range names {
		d := link.Device{Instance: n.Name()}
		if b, err := os.ReadFile(filepath.Join(dir, n.Name(), "class_id")); err == nil {
			d.Class = strings.Trim(string(b), "{}\n")
		}
		if l, err := os.Readlink(filepath.Join(dir, n.Name(), "driver")); err == nil {
			d.Driver = filepath.Base(l)
		}
		ds = append(ds, d)
	}
	return ds
}

// killAll sends a signal to every process but this one. Only process 1 may.
func killAll(sig unix.Signal) {
	if os.Getpid() == 1 {
		unix.Kill(-1, sig)
	}
}

// reapAll waits for pid as process 1 does: the orphans of the guest end here
// too.
func reapAll(pid int) unix.WaitStatus {
	for {
		var ws unix.WaitStatus
		p, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			panic(fmt.Sprintf("agent: wait for process %d: %v", pid, err))
		}
		if p == pid {
			return ws
		}
	}
}

// reapOne waits for pid alone.
func reapOne(pid int) unix.WaitStatus {
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			panic(fmt.Sprintf("agent: wait for process %d: %v", pid, err))
		}
		return ws
	}
}
