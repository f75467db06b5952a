package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/hvpost/hvpost/guest"
)

var le = binary.LittleEndian

// A Mode is the processor mode at the entry point.
type Mode int

const (
	Long64      Mode = iota // 64-bit mode, identity page tables
	Protected32             // flat 32-bit protected mode, no paging
)

func (m Mode) String() string {
	if m == Long64 {
		return "64-bit"
	}
	return "32-bit protected"
}

// A Segment is a segment register with its hidden part.
type Segment struct {
	Selector uint16
	Base     uint64
	Limit    uint32 // in bytes, whatever G says
	Type     uint8  // descriptor type, 4 bits
	S        bool   // code or data, not system
	DPL      uint8
	Present  bool
	L, DB, G bool
}

// A Table is GDTR or IDTR.
type Table struct {
	Base  guest.GPA
	Limit uint16
}

// A State is what the first processor starts with. Registers not named are 0.
type State struct {
	Mode                   Mode
	RIP, RSP, RFLAGS       uint64
	RAX, RBX, RSI          uint64
	CR0, CR3, CR4, EFER    uint64
	CS, DS, ES, FS, GS, SS Segment
	TR                     Segment
	GDT, IDT               Table

	// MTRRDefType is the value of IA32_MTRR_DEF_TYPE (MSR 0x2FF) for every
	// processor: MTRRs on, all memory write-back, as firmware would leave it.
	// With MTRRs off Linux 6.1 does without PAT.
	MTRRDefType uint64
}

// A Loaded is the result of loading a kernel.
type Loaded struct {
	State  State
	Kernel Entry // from the first to the last byte of memory that it claims
	Initrd Entry // Size 0 without one
}

// Where the loader puts its own data. It all lies below the EBDA, in memory
// that the map offers as RAM: a kernel copies what it needs before it
// allocates there.
const (
	gdtBase     guest.GPA = 0x1000
	paramsBase  guest.GPA = 0x2000 // zero page, or PVH start info
	pvhMapBase  guest.GPA = 0x3000 // PVH memory map; a 32-bit entry has no page tables
	tablesBase  guest.GPA = 0x3000 // PML4, PDPT, four page directories
	stackTop    guest.GPA = 0x10000
	mbiBase     guest.GPA = 0x10000
	mbiSize               = 0x10000
	cmdlineBase guest.GPA = 0x20000
	cmdlineRoom           = 0x10000
)

// Control register and EFER bits (SDM volume 3, "Control Registers").
const (
	cr0PE   = 1 << 0
	cr0ET   = 1 << 4
	cr0NE   = 1 << 5
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10

	mtrrEnable    = 1 << 11
	mtrrWriteBack = 6
)

// Selectors: the ones that the Linux boot protocol prescribes (__BOOT_CS,
// __BOOT_DS), which suit PVH and multiboot as well.
const (
	selCode = 0x10
	selData = 0x18
	selTSS  = 0x20
)

func baseState(mode Mode) State {
	code := Segment{Selector: selCode, Limit: 0xFFFFFFFF, Type: 0xB, S: true, Present: true, G: true}
	if mode == Long64 {
		code.L = true
	} else {
		code.DB = true
	}
	data := Segment{Selector: selData, Limit: 0xFFFFFFFF, Type: 0x3, S: true, Present: true, G: true, DB: true}
	s := State{
		Mode:   mode,
		RSP:    uint64(stackTop),
		RFLAGS: 1 << 1, // the bit that is always set; interrupts are off
		CS:     code, DS: data, ES: data, FS: data, GS: data, SS: data,
		TR:          Segment{Selector: selTSS, Limit: 0x67, Type: 0xB, Present: true},
		GDT:         Table{gdtBase, 6*8 - 1},
		CR0:         cr0PE | cr0ET | cr0NE,
		MTRRDefType: mtrrEnable | mtrrWriteBack,
	}
	if mode == Long64 {
		s.CR0 |= cr0PG
		s.CR3 = uint64(tablesBase)
		s.CR4 = cr4PAE
		s.EFER = eferLME | eferLMA
	}
	return s
}

// descriptor packs a segment into the eight bytes of its GDT entry.
func descriptor(s Segment) uint64 {
	bit := func(b bool, n int) uint64 {
		if b {
			return 1 << n
		}
		return 0
	}
	limit := uint64(s.Limit)
	if s.G {
		limit >>= 12
	}
	return limit&0xFFFF | s.Base&0xFFFFFF<<16 | uint64(s.Type)<<40 | bit(s.S, 44) | uint64(s.DPL)<<45 |
		bit(s.Present, 47) | limit>>16&0xF<<48 | bit(s.L, 53) | bit(s.DB, 54) | bit(s.G, 55) | s.Base>>24&0xFF<<56
}

// writeTables puts the GDT, and for 64-bit mode page tables that map the
// first 4 GiB onto themselves in 2 MiB pages, into guest memory.
func writeTables(mem *guest.Memory, s State) error {
	gdt := make([]byte, 6*8)
	le.PutUint64(gdt[selCode:], descriptor(s.CS))
	le.PutUint64(gdt[selData:], descriptor(s.DS))
	// In 64-bit mode the TSS takes two entries; the second stays 0.
	le.PutUint64(gdt[selTSS:], descriptor(s.TR))
	if err := store(mem, gdt, gdtBase); err != nil {
		return fmt.Errorf("boot GDT: %w", err)
	}
	if s.Mode != Long64 {
		return nil
	}
	const (
		directories = 4
		table       = 1 | 2        // present, writable
		page        = 1 | 2 | 1<<7 // present, writable, 2 MiB
	)
	b := make([]byte, (2+directories)*guest.PageSize)
	le.PutUint64(b, uint64(tablesBase)+guest.PageSize|table)
	for d := range directories {
		le.PutUint64(b[guest.PageSize+8*d:], uint64(tablesBase)+uint64(2+d)*guest.PageSize|table)
	}
	for i := range directories * 512 {
		le.PutUint64(b[2*guest.PageSize+8*i:], uint64(i)<<21|page)
	}
	if err := store(mem, b, tablesBase); err != nil {
		return fmt.Errorf("boot page tables: %w", err)
	}
	return nil
}
