package boot

import (
	"errors"
	"fmt"

	"github.com/hvpost/hvpost/guest"
)

// zeroPageSize is the size of struct boot_params.
const zeroPageSize = 4096

// loadLinux64 loads a vmlinux and enters it at its 64-bit entry
// (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; the entry itself
// is startup_64 in arch/x86/kernel/head_64.S).
func (im *Image) loadLinux64(mem *guest.Memory, p Params) (*Loaded, error) {
	if im.Kind != ELF64 {
		return nil, fmt.Errorf("%s: is a %v: only a 64-bit vmlinux has the linux64 entry", im.Name, im.Kind)
	}
	entry, err := im.elf.physicalEntry()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", im.Name, err)
	}
	kernel, err := im.loadSegments(mem, p.Map, im.elf.segments)
	if err != nil {
		return nil, err
	}
	h := p.Setup
	if h == nil {
		h = madeUpSetup(kernel)
	}
	initrd, err := finishLinux(mem, p, h, kernel, uint32(kernel.Base))
	if err != nil {
		return nil, err
	}
	s := baseState(Long64)
	s.RIP, s.RSI = uint64(entry), uint64(paramsBase)
	return &Loaded{State: s, Kernel: kernel, Initrd: initrd}, nil
}

// loadBzImage loads a bzImage for the guest to unpack: by its 64-bit entry
// where it has one, else by the 32-bit one.
func (im *Image) loadBzImage(mem *guest.Memory, p Params) (*Loaded, error) {
	if im.Kind != BzImage {
		return nil, fmt.Errorf("%s: is a %v, not a bzImage", im.Name, im.Kind)
	}
	h := im.Setup
	size := uint64(im.size - h.SetupSize)
	// Before protocol 2.10 the memory need is not stated; unpacking takes
	// place from the load address on.
	need := max(size, uint64(h.InitSize))
	base, err := im.placeBzImage(p.Map, need)
	if err != nil {
		return nil, err
	}
	if err := copyIn(mem, base, im.r, h.SetupSize, size, im.Name); err != nil {
		return nil, err
	}
	kernel := Entry{base, need, RAM}
	initrd, err := finishLinux(mem, p, h, kernel, uint32(base))
	if err != nil {
		return nil, err
	}
	s := baseState(Protected32)
	s.RIP = uint64(base)
	if h.XLoadFlags&xlfKernel64 != 0 {
		s = baseState(Long64)
		s.RIP = uint64(base) + 0x200
	}
	s.RSI = uint64(paramsBase)
	return &Loaded{State: s, Kernel: kernel, Initrd: initrd}, nil
}

// placeBzImage chooses the load address: the preferred one, or for a
// relocatable kernel in a small guest the first aligned one above 1 MiB.
func (im *Image) placeBzImage(m []Entry, need uint64) (guest.GPA, error) {
	h := im.Setup
	base := uint64(highMemory)
	if h.PrefAddress != 0 && h.Relocatable {
		base = h.PrefAddress
	}
	err := im.checkPlace(m, base, need)
	if err == nil && base+need <= 1<<32 {
		return guest.GPA(base), nil
	}
	if align := uint64(h.Alignment); h.Relocatable && align != 0 && align&(align-1) == 0 {
		low := (uint64(highMemory) + align - 1) &^ (align - 1)
		if low+need <= 1<<32 && im.checkPlace(m, low, need) == nil {
			return guest.GPA(low), nil
		}
	}
	if err == nil {
		err = fmt.Errorf("%s: asks to be loaded above 4 GiB", im.Name)
	}
	return 0, err
}

// madeUpSetup is the header for a vmlinux that came without its bzImage.
func madeUpSetup(kernel Entry) *SetupHeader {
	const headerEnd = 0x26C // protocol 2.15
	b := make([]byte, setupEndMax)
	le.PutUint16(b[offBootFlag:], 0xAA55)
	b[offJump], b[offJump+1] = 0xEB, headerEnd-offMagic
	copy(b[offMagic:], "HdrS")
	le.PutUint16(b[offVersion:], 0x020F)
	b[offLoadFlags] = loadedHigh
	le.PutUint32(b[offAlignment:], 2<<20)
	b[offRelocatable], b[offMinAlign] = 1, 21
	le.PutUint16(b[offXLoadFlags:], xlfKernel64|xlfAbove4G)
	le.PutUint32(b[offCmdlineSize:], defaultCmdline)
	le.PutUint64(b[offPrefAddress:], uint64(kernel.Base))
	le.PutUint32(b[offInitSize:], uint32(min(kernel.Size, 1<<32-1)))
	return &SetupHeader{
		Version: 0x020F, LoadFlags: loadedHigh, XLoadFlags: xlfKernel64 | xlfAbove4G,
		CmdlineSize: defaultCmdline, raw: b[setupStart:headerEnd],
	}
}

// finishLinux places initrd, command line and zero page.
func finishLinux(mem *guest.Memory, p Params, h *SetupHeader, kernel Entry, code32 uint32) (Entry, error) {
	if len(p.Map) > maxEntries {
		return Entry{}, errors.New("memory map has more ranges than fit into the zero page")
	}
	if err := writeCmdline(mem, p.Cmdline, h.cmdlineLimit()); err != nil {
		return Entry{}, err
	}
	// The unpacked kernel keeps on using memory up to init_size.
	taken := kernel
	taken.Size = max(taken.Size, uint64(h.InitSize))
	initrd, err := loadInitrd(mem, p, h.initrdLimit(), taken)
	if err != nil {
		return Entry{}, err
	}
	if err := store(mem, zeroPage(p, h, initrd, code32), paramsBase); err != nil {
		return Entry{}, fmt.Errorf("zero page: %w", err)
	}
	return initrd, nil
}

// zeroPage builds struct boot_params. What the loader does not know stays 0,
// as the protocol demands (sanitize_boot_params in the kernel looks at a
// sentinel byte there).
func zeroPage(p Params, h *SetupHeader, initrd Entry, code32 uint32) []byte {
	const (
		undefinedLoader = 0xFF
		heapEnd         = 0xE000 // only the real-mode code would use it
	)
	b := make([]byte, zeroPageSize)
	copy(b[setupStart:setupEndMax], h.raw)
	b[offLoaderType] = undefinedLoader
	b[offLoadFlags] = h.LoadFlags&^(kaslrFlag|keepSegments) | loadedHigh | canUseHeap
	le.PutUint16(b[offHeapEnd:], heapEnd)
	le.PutUint32(b[offCode32:], code32)
	le.PutUint32(b[offSubarch:], 0)
	if len(h.raw) > offSetupData-setupStart {
		le.PutUint64(b[offSetupData:], 0)
	}
	le.PutUint32(b[offCmdline:], uint32(cmdlineBase))
	le.PutUint32(b[offExtCmdline:], 0)
	le.PutUint32(b[offRamdisk:], uint32(initrd.Base))
	le.PutUint32(b[offExtRamdisk:], uint32(initrd.Base>>32))
	le.PutUint32(b[offRamdiskSize:], uint32(initrd.Size))
	le.PutUint32(b[offExtRamSize:], uint32(initrd.Size>>32))
	le.PutUint64(b[offACPIRSDP:], uint64(p.RSDP))
	b[offE820Count] = byte(len(p.Map))
	for i, e := range p.Map {
		at := b[offE820Table+20*i:]
		le.PutUint64(at, uint64(e.Base))
		le.PutUint64(at[8:], e.Size)
		le.PutUint32(at[16:], uint32(e.Type))
	}
	return b
}
