package chipset

// An ExitPort ends the machine with the value written to it, as QEMU's
// isa-debug-exit does: bare-metal test programs have no other way out.
type ExitPort struct {
	// Exit is called with the value on the virtual processor that wrote it.
	Exit func(value uint32)
}

// PortIn reads zero.
func (ExitPort) PortIn(_ uint16, p []byte) { clear(p) }

// PortOut ends the machine.
func (e ExitPort) PortOut(_ uint16, p []byte) {
	var v uint32
	for i, b := range p[:min(4, len(p))] {
		v |= uint32(b) << (8 * i)
	}
	e.Exit(v)
}

// keyboardPulseReset is the command of an 8042 that pulses the reset line.
const keyboardPulseReset = 0xFE

// KeyboardReset is what is left of the 8042: its command port takes the reset
// pulse, which guests fall back to. The status reads as ones, which drivers
// take for an absent controller.
type KeyboardReset struct {
	Reset func()
}

// PortIn reads ones.
func (KeyboardReset) PortIn(_ uint16, p []byte) {
	for i := range p {
		p[i] = 0xFF
	}
}

// PortOut resets on the pulse command.
func (k KeyboardReset) PortOut(_ uint16, p []byte) {
	if p[0] == keyboardPulseReset {
		k.Reset()
	}
}
