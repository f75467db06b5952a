package session

import (
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
func (p *Plan) load(mem *guest.Memory, fw vmm.Firmware) (boot.State, error) {
	path := p.kernelPath()
	if path == "" {
		return boot.State{}, fmt.Errorf("kernel %s has no image for --boot=%s", p.kernel.Name, p.bootProtocol())
	}
	f, err := os.Open(path)
	if err != nil {
		return boot.State{}, fmt.Errorf("kernel: %w", err)
	}
	defer f.Close()
	image, err := boot.Open(f)
	if err != nil {
		return boot.State{}, err
	}
	params := boot.Params{
		Map:     fw.Map,
		RSDP:    fw.RSDP,
		Cmdline: p.cmdline(windowParameter()),
		Initrd: []boot.Part{{
			Name: "of the agent", Size: p.image.Size,
			Load: func(mem *guest.Memory, a guest.GPA) error { return p.image.Load(mem, a) },
		}},
	}
	if p.opts.Initrd != "" {
		user, err := os.Open(p.opts.Initrd)
		if err != nil {
			return boot.State{}, fmt.Errorf("--initrd: %w", err)
		}
		defer user.Close()
		st, err := user.Stat()
		if err != nil {
			return boot.State{}, fmt.Errorf("--initrd: %w", err)
		}
		params.Initrd = append(params.Initrd, boot.Part{Name: p.opts.Initrd, R: user, Size: st.Size()})
	}
	protocol := boot.Linux64
	switch p.bootProtocol() {
	case "bzimage":
		protocol = boot.LinuxBzImage
	case "pvh":
		protocol = boot.PVH
	}
	loaded, err := image.Load(mem, protocol, params)
	if err != nil {
		return boot.State{}, err
	}
	return loaded.State, nil
}

// vmbusMax is the newest version for the server to agree to.
func (p *Plan) vmbusMax() proto.Version {
	return proto.Version(uint32(p.opts.VMBusMaxMajor)<<16 | uint32(p.opts.VMBusMaxMinor))
}
