package synic

import "github.com/hvpost/hvpost/guest"

// Offsets in the hypercall page at which the guest stops for a trap. The
// instruction pointer of a port exit is at the OUT or right after it,
// depending on how the host's KVM got there; once the call is done the guest
// goes on at the Done offset.
const (
	TrapOut    = 0x27 // out TrapPort, eax
	TrapDone   = 0x29 // ret
	SignalOut  = 0x22 // out SignalPort, eax
	SignalDone = 0x26 // ret, past an xor eax, eax of SignalSkip bytes

	// SignalSkip is the length of the instruction after the OUT to SignalPort
	// that makes the result SUCCESS when the kernel took the signal. After a
	// hypercall for it, the guest goes on behind it.
	SignalSkip = 2
)

// HypercallPage returns the content of the hypercall page, a program of our
// own. Callers in 64-bit and in 32-bit mode enter at offset 0:
//
//	   0  f3 0f 1e fa           endbr64            ; a no-op in 32-bit mode
//	   4  50                    push rax
//	   5  31 c0                 xor eax, eax
//	   7  40 90                 rex nop            ; 32-bit: inc eax; nop
//	   9  85 c0                 test eax, eax
//	   b  58                    pop rax
//	   c  75 19                 jnz plain          ; a 32-bit caller
//	   e  48 81 f9 5d 00 01 00  cmp rcx, 0x1005d   ; fast HvCallSignalEvent
//	  15  75 10                 jne plain
//	  17  48 89 d0              mov rax, rdx
//	  1a  48 c1 e8 20           shr rax, 32
//	  1e  75 07                 jnz plain          ; not flag number 0
//	  20  89 d0                 mov eax, edx
//	  22  e7 SS                 out SignalPort, eax
//	  24  31 c0                 xor eax, eax       ; HV_STATUS_SUCCESS
//	  26  c3                    ret
//	plain:
//	  27  e7 TT                 out TrapPort, eax
//	  29  c3                    ret
//	  2a  cc ...                int3
//
// An ioeventfd on SignalPort that matches the connection id takes a signal
// inside the kernel. Without one the OUT exits like the plain one; the caller's
// registers are still there then. Nothing but RAX and flags changes, and the
// plain path keeps all registers of a 32-bit caller, for whom EAX is input.
func HypercallPage(trapPort, signalPort uint8) [guest.PageSize]byte {
	code := [...]byte{
		0xF3, 0x0F, 0x1E, 0xFA,
		0x50,
		0x31, 0xC0,
		0x40, 0x90,
		0x85, 0xC0,
		0x58,
		0x75, 0x19,
		0x48, 0x81, 0xF9, 0x5D, 0x00, 0x01, 0x00,
		0x75, 0x10,
		0x48, 0x89, 0xD0,
		0x48, 0xC1, 0xE8, 0x20,
		0x75, 0x07,
		0x89, 0xD0,
		0xE7, signalPort,
		0x31, 0xC0,
		0xC3,
		0xE7, trapPort,
		0xC3,
	}
	var page [guest.PageSize]byte
	for i := range page {
		page[i] = 0xCC
	}
	copy(page[:], code[:])
	return page
}

// HypercallPage returns where the guest has its hypercall page and whether it
// is enabled.
func (p *Partition) HypercallPage() (base guest.GPA, enabled bool) {
	r := p.hypercallRegister()
	return r.Base(), r.Enabled()
}

// InHypercallPage reports whether gpa lies in the enabled hypercall page.
func (p *Partition) InHypercallPage(gpa guest.GPA) bool {
	r := p.hypercallRegister()
	return r.Enabled() && gpa.Page() == r.Base().Page()
}
