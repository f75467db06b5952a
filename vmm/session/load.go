package session

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/hvpost/hvpost/firmware/boot"
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/guest/link"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmm"
)

// windowParameter tells the agent where the window is.
func windowParameter() string {
	return fmt.Sprintf("hvpost.link=%#x,%#x", uint64(vmm.WindowBase), link.WindowSize)
}

// bootProtocol is the way into the kernel: by default the unpacked image at
// its 64-bit entry, which spares the guest the unpacking.
func (p *Plan) bootProtocol() string {
	if p.opts.Boot != "auto" {
		return p.opts.Boot
	}
	if p.kernel.Vmlinux != "" {
		return "linux64"
	}
	return "bzimage"
}

// kernelPath is the file that is loaded.
func (p *Plan) kernelPath() string {
	if p.bootProtocol() == "bzimage" {
		return p.kernel.Image
	}
	return p.kernel.Vmlinux
}

// load is the machine's loader.
func (p *Plan) load(mem *guest.Memory, fw vmm.Firmware) (state boot.State, err error) {
	err = p.withImage(func(image *boot.Image, protocol boot.Protocol, params boot.Params) error {
		params.Map, params.RSDP = fw.Map, fw.RSDP
		loaded, err := image.Load(mem, protocol, params)
		if err == nil {
			state = loaded.State
		}
		return err
	})
	return state, err
}

// checkImage finds out what load would find wrong: a file that is no kernel
// for this protocol, a command line that is too long, a kernel or an initrd
// that does not fit into memory. The agent's window lies in the hole below
// 4 GiB, so that RAM alone makes the map.
func (p *Plan) checkImage(context.Context) error {
	_, ram, err := boot.Layout(p.opts.Memory)
	if err != nil {
		return err
	}
	return p.withImage(func(image *boot.Image, protocol boot.Protocol, params boot.Params) error {
		params.Map = ram
		return image.Check(protocol, params)
	})
}

// withImage opens the kernel and what it is loaded with for the time of f.
func (p *Plan) withImage(f func(*boot.Image, boot.Protocol, boot.Params) error) error {
	path := p.kernelPath()
	if path == "" {
		return fmt.Errorf("kernel %s has no image for --boot=%s; try --boot=auto", cmp.Or(p.kernel.Image, p.kernel.Vmlinux), p.bootProtocol())
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	defer file.Close()
	image, err := boot.Open(file)
	if err != nil {
		return err
	}
	params := boot.Params{
		Cmdline: p.cmdline(windowParameter()),
		Initrd: []boot.Part{{
			Name: "of the agent", Size: p.image.Size,
			Load: func(mem *guest.Memory, a guest.GPA) error { return p.image.Load(mem, a) },
		}},
	}
	if p.opts.Initrd != "" {
		user, size, err := openInitrd(p.opts.Initrd)
		if err != nil {
			return fmt.Errorf("--initrd: %w", err)
		}
		defer user.Close()
		params.Initrd = append(params.Initrd, boot.Part{Name: p.opts.Initrd, R: user, Size: size})
	}
	protocol := boot.Linux64
	switch p.bootProtocol() {
	case "bzimage":
		protocol = boot.LinuxBzImage
	case "pvh":
		protocol = boot.PVH
	}
	return f(image, protocol, params)
}

// openInitrd opens a regular file; a FIFO must not block.
func openInitrd(path string) (*os.File, int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, reason(err))
	}
	if !st.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	return f, st.Size(), err
}

// vmbusMax is the newest version for the server to agree to.
func (p *Plan) vmbusMax() proto.Version {
	return proto.Version(uint32(p.opts.VMBusMaxMajor)<<16 | uint32(p.opts.VMBusMaxMinor))
}
