package probe

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// host reads what the host says of itself. What cannot be read stays empty:
// a container may hide any of it.
func host() Host {
	var h Host
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		h.readCPUInfo(f)
		f.Close()
	}
	h.Modules = modules("/sys/module")
	return h
}

// maxCPUInfo is enough for the first processor of /proc/cpuinfo.
const maxCPUInfo = 64 << 10

// readCPUInfo takes the first processor of a /proc/cpuinfo.
func (h *Host) readCPUInfo(r io.Reader) {
	s := bufio.NewScanner(io.LimitReader(r, maxCPUInfo))
	s.Buffer(nil, maxCPUInfo)
	for s.Scan() {
		key, val, ok := strings.Cut(s.Text(), ":")
		if !ok {
			if s.Text() == "" && h.Vendor != "" {
				return // end of the first processor
			}
			continue
		}
		val = strings.TrimSpace(val)
		switch strings.TrimSpace(key) {
		case "vendor_id":
			h.Vendor = val
		case "model name":
			h.Model = val
		case "flags":
			for f := range strings.FieldsSeq(val) {
				switch f {
				case "vmx":
					h.VMX = true
				case "svm":
					h.SVM = true
				case "hypervisor":
					h.Hypervisor = true
				}
			}
		}
	}
}

// modules returns the names of the KVM modules below dir.
func modules(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, "kvm*"))
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = filepath.Base(p)
	}
	return names
}

// module returns the module that fits the CPU.
func (h *Host) module() string {
	if h.Vendor == "AuthenticAMD" || h.Vendor == "HygonGenuine" || h.SVM {
		return "kvm_amd"
	}
	return "kvm_intel"
}

const useEmulated = "hvpost run --host emulated ...    # a real KVM inside an emulated host, no rights needed, slower"

// fix returns what to do about the state.
func (r *Report) fix() []string {
	h := &r.Host
	virt := h.VMX || h.SVM
	load := []string{
		"sudo modprobe " + h.module(),
		fmt.Sprintf("echo %s | sudo tee /etc/modules-load.d/kvm.conf    # at every boot", h.module()),
	}
	hardware := "enable VT-x or AMD-V (SVM) in the firmware setup of this machine"
	if h.Hypervisor {
		hardware = fmt.Sprintf("on the outer host: sudo modprobe -r %[1]s && sudo modprobe %[1]s nested=1, and give this machine the host's CPU model", h.module())
	}
	switch r.State {
	case Missing:
		if !virt {
			return []string{hardware, load[0], useEmulated}
		}
		return append(load, "docker run --device "+r.Path+" ...    # if this is a container", useEmulated)
	case Denied:
		return []string{
			"sudo usermod -aG kvm $USER    # then log in again",
			`echo 'KERNEL=="kvm", GROUP="kvm", MODE="0660", OPTIONS+="static_node=kvm"' | sudo tee /etc/udev/rules.d/65-kvm.rules`,
			"sudo udevadm control --reload-rules && sudo udevadm trigger --name-match=kvm",
			"sudo chmod 0666 " + r.Path + "    # at once, until the next boot; on CI runners",
			"docker run --device " + r.Path + " ...    # if this is a container",
			useEmulated,
		}
	case NoHardware:
		return []string{hardware, load[0], useEmulated}
	case Software:
		fix := []string{useEmulated}
		if virt {
			fix = append(fix, load[0]+"    # this CPU has VMX or SVM")
		}
		return append(fix, "guests other than Linux (the conformance stub, 16-bit system VMs) run as it is: --host kvm")
	case Broken:
		if r.busy {
			return []string{"stop the other hypervisor on this host (VirtualBox, VMware), which holds the CPU's virtualization", useEmulated}
		}
		update := "update the kernel of this host (6.1 or later is known to work)"
		if l := r.lacking(); len(l) > 0 {
			update += ": it lacks " + strings.Join(l, ", ")
		}
		return []string{update, useEmulated}
	}
	return nil
}
