package boot

import (
	"errors"
	"fmt"

	"github.com/hvpost/hvpost/guest"
)

// loadPVH loads an ELF and enters it where its PVH note says (Xen,
// docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h): flat 32-bit
// protected mode, EBX pointing to hvm_start_info.
func (im *Image) loadPVH(mem *guest.Memory, p Params) (*Loaded, error) {
	if !im.HasPVH {
		return nil, fmt.Errorf("%s: has no PVH entry point", im.Name)
	}
	in := false
	for _, s := range im.elf.segments {
		in = in || uint64(im.PVHEntry) >= s.paddr && uint64(im.PVHEntry) < s.end()
	}
	if !in {
		return nil, fmt.Errorf("%s: has its PVH entry point %#x outside all ELF segments", im.Name, im.PVHEntry)
	}
	const mapRoom = (int(stackTop) - int(pvhMapBase)) / 2 // the rest is the stack's
	if len(p.Map)*24 > mapRoom {
		return nil, errors.New("memory map has more ranges than PVH start info has room for")
	}
	kernel, err := im.loadSegments(mem, p.Map, im.elf.segments)
	if err != nil {
		return nil, err
	}
	if err := writeCmdline(mem, p.Cmdline, p.Setup.cmdlineLimit()); err != nil {
		return nil, err
	}
	initrd, err := loadInitrd(mem, p, 1<<32, kernel)
	if err != nil {
		return nil, err
	}
	if err := store(mem, startInfo(p, initrd), paramsBase); err != nil {
		return nil, fmt.Errorf("PVH start info: %w", err)
	}
	if err := store(mem, pvhMap(p.Map), pvhMapBase); err != nil {
		return nil, fmt.Errorf("PVH memory map: %w", err)
	}
	s := baseState(Protected32)
	s.RIP, s.RBX = uint64(im.PVHEntry), uint64(paramsBase)
	return &Loaded{State: s, Kernel: kernel, Initrd: initrd}, nil
}

// startInfo is struct hvm_start_info, version 1, with the module list behind
// it.
func startInfo(p Params, initrd Entry) []byte {
	const (
		magic      = 0x336EC578
		infoSize   = 56
		moduleSize = 32
		moduleOff  = 64
	)
	b := make([]byte, moduleOff+moduleSize)
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[4:], 1) // version
	if initrd.Size != 0 {
		le.PutUint32(b[12:], 1) // modules
		le.PutUint64(b[16:], uint64(paramsBase)+moduleOff)
		le.PutUint64(b[moduleOff:], uint64(initrd.Base))
		le.PutUint64(b[moduleOff+8:], initrd.Size)
	}
	le.PutUint64(b[24:], uint64(cmdlineBase))
	le.PutUint64(b[32:], uint64(p.RSDP))
	le.PutUint64(b[40:], uint64(pvhMapBase))
	le.PutUint32(b[48:], uint32(len(p.Map)))
	return b
}

// pvhMap is the array of struct hvm_memmap_table_entry.
func pvhMap(m []Entry) []byte {
	b := make([]byte, 0, 24*len(m))
	for _, e := range m {
		b = le.AppendUint64(b, uint64(e.Base))
		b = le.AppendUint64(b, e.Size)
		b = le.AppendUint32(b, uint32(e.Type))
		b = le.AppendUint32(b, 0)
	}
	return b
}
