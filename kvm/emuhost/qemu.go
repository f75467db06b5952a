package emuhost

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost/inside"
)

// kernelArgs is the command line of the emulated host's kernel.
//
//   - mitigations=off: they cost a great deal in emulation and protect nothing here.
//   - transparent_hugepage=madvise: what asks for huge pages, as VMMs do for the memory of their guests, gets them. A
//     Linux guest boots in three quarters of the time. PID 1 puts khugepaged to sleep.
//   - nokaslr, cryptomgr.notests: half a second of the boot.
//   - no_timer_check, tsc=reliable, nowatchdog, rcu_cpu_stall_suppress: QEMU gets little of a busy machine, and the
//     kernel takes that for broken hardware: it panicked for want of timer interrupts.
//   - panic=-1 with QEMU's -no-reboot: a panic ends QEMU, and the daemon says so.
const kernelArgs = "console=ttyS0 quiet panic=-1 mitigations=off transparent_hugepage=madvise nokaslr cryptomgr.notests " +
	"no_timer_check tsc=reliable nowatchdog rcupdate.rcu_cpu_stall_suppress=1 " + inside.Role

// firmware is a small BIOS that starts a kernel about a quarter of a second sooner than SeaBIOS does.
const firmware = "/usr/share/qemu/qboot.rom"

// File descriptors that QEMU inherits.
const (
	qemuLinkFD    = 3
	qemuConsoleFD = 4
)

// qemuArgs returns QEMU's arguments.
func qemuArgs(c serveConfig) []string {
	i := instance{c.Base, c.Name}
	kernel := kernelArgs
	if c.TSCKHz != 0 {
		kernel += fmt.Sprintf(" tsc_early_khz=%d", c.TSCKHz)
	}
	if c.Append != "" {
		kernel += " " + c.Append
	}
	args := []string{
		"-name", "hvpost-" + c.Name,
		"-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot",
		"-machine", "q35",
		"-accel", "tcg,thread=multi,tb-size=1024",
		"-cpu", "EPYC,+svm,+npt,-xsavec",
		// One CPU: code patching of an SMP kernel races in the emulation.
		"-smp", "1",
		"-m", fmt.Sprint(c.MemoryMiB),
		"-kernel", c.Kernel, "-initrd", i.initrd(), "-append", kernel,
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", qemuConsoleFD), "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=link,fd=%d", qemuLinkFD),
		"-device", "virtio-serial-pci,id=serial,max_ports=2,addr=0x4",
		"-device", "virtserialport,bus=serial.0,chardev=link,name=" + inside.PortName,
		"-fsdev", "local,id=xfer,security_model=none,path=" + quote(i.xfer()),
		"-device", "virtio-9p-pci,fsdev=xfer,addr=0x5,mount_tag=" + inside.XferTag,
		"-fsdev", "local,id=root,security_model=none,multidevs=remap,readonly=on,path=/",
	}
	if c.Firmware != "" {
		args = append(args, "-bios", c.Firmware)
	}
	for v := range Views {
		multi := "off"
		if v%8 == 0 {
			multi = "on" // said by the first function of a slot
		}
		args = append(args, "-device", fmt.Sprintf("virtio-9p-pci,fsdev=root,addr=%#x.%d,multifunction=%s,mount_tag=%s", 8+v/8, v%8, multi, inside.ViewTag(v)))
	}
	return args
}

// quote makes a value of a QEMU option: commas are doubled.
func quote(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// qemu is a running QEMU.
type qemu struct {
	pid     int
	proc    *os.Process
	link    *os.File
	console *os.File
	done    chan struct{} // closed when it has ended
	err     error         // why, once done
}

// startQEMU starts QEMU, its messages going to log. The kernel kills it when this process ends, however it ends.
func startQEMU(c serveConfig, log *os.File) (*qemu, error) {
	q := &qemu{done: make(chan struct{})}
	link, linkTheirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer linkTheirs.Close()
	console, consoleTheirs, err := socketPair()
	if err != nil {
		link.Close()
		return nil, err
	}
	defer consoleTheirs.Close()
	q.link, q.console = link, console
	cmd := exec.Command(c.QEMU, qemuArgs(c)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{linkTheirs, consoleTheirs} // descriptors from 3 on
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel sends the signal when the thread that started the child ends; this one lives until the
		// child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			q.proc, q.pid = cmd.Process, cmd.Process.Pid
		}
		started <- err
		if err == nil {
			if q.err = cmd.Wait(); q.err == nil {
				q.err = fmt.Errorf("it ended")
			}
			close(q.done)
		}
	}()
	if err := <-started; err != nil {
		link.Close()
		console.Close()
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return q, nil
}

// kill ends QEMU and waits until it is gone.
func (q *qemu) kill() {
	_ = q.proc.Kill() // it may have ended
	<-q.done
}

// socketPair makes two connected stream sockets; the first is for Go's poller, the second for a child.
func socketPair() (ours, theirs *os.File, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(p[0]), "qemu"), os.NewFile(uintptr(p[1]), "qemu"), nil
}

var versionRE = regexp.MustCompile(`^QEMU emulator version ([0-9][0-9.]*)`)

// qemuVersion asks QEMU for its version.
func qemuVersion(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("emulated host: %s --version: %w", path, err)
	}
	m := versionRE.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("emulated host: %s --version says %q", path, firstLine(string(out)))
	}
	return string(m[1]), nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
