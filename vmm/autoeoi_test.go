package vmm

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
)

// Layout of the interrupted guest.
const (
	bareIDT     = 0x20_2000
	bareSIEF    = 0x20_3000
	bareCounter = 0x20_4000
	bareHandler = 0x20_5000
	autoSINT    = 3
	autoVector  = 0x50
)

// interrupted is a guest that takes autoVector from an AutoEOI SINT and waits
// for it in the loop given; it never writes an EOI.
func interrupted(t *testing.T, loop ...byte) *Machine {
	a := new(asm).
		wrmsr(hv.MSRSCONTROL, 1).wrmsr(hv.MSRSIEFP, bareSIEF|1).
		wrmsr(hv.MSRSINT0+autoSINT, autoVector|1<<17).
		bytes(0x0F, 0x01, 0x1C, 0x25).bytes(binary.LittleEndian.AppendUint32(nil, bareIDT-16)...).  // lidt [idtr]
		imm32(0xB8, 1).bytes(0xA3).bytes(binary.LittleEndian.AppendUint64(nil, bareCounter+64)...). // ready
		bytes(loop...)
	m := bare(t, a)
	idtr := binary.LittleEndian.AppendUint16(nil, 0xFFF)
	idtr = binary.LittleEndian.AppendUint64(idtr, bareIDT)
	gate := make([]byte, 16)
	binary.LittleEndian.PutUint16(gate, bareHandler&0xFFFF)
	binary.LittleEndian.PutUint16(gate[2:], 8) // code selector
	gate[5] = 0x8E                             // present interrupt gate
	binary.LittleEndian.PutUint16(gate[6:], bareHandler>>16)
	le32 := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	handler := append([]byte{0xC6, 0x04, 0x25}, le32(bareSIEF+autoSINT*256)...) // mov byte [flag], 0
	handler = append(handler, 0)
	handler = append(append(handler, 0xF0, 0xFF, 0x04, 0x25), le32(bareCounter)...) // lock inc dword [counter]
	handler = append(handler, 0x48, 0xCF)                                           // iretq
	// The loader's GDT, for the selectors that the gate and IRETQ load.
	gdt := make([]byte, 24)
	binary.LittleEndian.PutUint64(gdt[8:], 0x00AF_9B00_0000_FFFF)
	binary.LittleEndian.PutUint64(gdt[16:], 0x00CF_9300_0000_FFFF)
	for at, b := range map[guest.GPA][]byte{
		bareIDT - 16: idtr, bareIDT + autoVector*16: gate, bareHandler: handler, bareGDT: gdt,
	} {
		if err := m.Memory().WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// AutoEOI interrupts must keep coming though the guest never ends one,
// whatever it does meanwhile: running, halted, with short windows.
func TestAutoEOI_EveryInterruptArrives(t *testing.T) {
	for name, loop := range map[string][]byte{
		"running":       {0xFB, 0xEB, 0xFE},                                                 // sti; jmp .
		"halted":        {0xFB, 0xF4, 0xEB, 0xFC},                                           // sti; hlt; jmp
		"short windows": {0xFB, 0x90, 0x90, 0xFA, 0x90, 0x90, 0x90, 0x90, 0x90, 0xEB, 0xF5}, // sti; nop; nop; cli; ...
	} {
		t.Run(name, func(t *testing.T) {
			m := interrupted(t, loop...)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan Outcome, 1)
			go func() {
				o, err := m.Run(ctx)
				if err != nil {
					t.Error(err)
				}
				ended <- o
			}()
			counter, _ := m.Memory().Word(bareCounter)
			ready, _ := m.Memory().Word(bareCounter + 64)
			deadline := time.Now().Add(60 * time.Second)
			wait := func(done func() bool, what string) {
				for !done() {
					if time.Now().After(deadline) {
						t.Fatalf("%s did not come; counter %d", what, counter.Load())
					}
					time.Sleep(20 * time.Microsecond)
				}
			}
			defer func() {
				cancel()
				if o := <-ended; o.Cause != CauseStopped {
					t.Errorf("ended by %s: %s", o.Cause, o.Detail)
				}
			}()
			wait(func() bool { return ready.Load() == 1 }, "the guest")
			const n = 100
			for i := range uint32(n) {
				if s := m.Partition().SignalEvent(0, autoSINT, 0); s != hv.StatusSuccess {
					t.Fatalf("signal %d: %v", i, s)
				}
				wait(func() bool { return counter.Load() == i+1 }, "interrupt")
			}
		})
	}
}
