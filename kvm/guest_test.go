package kvm_test

import (
	"testing"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/bare"
	"github.com/hvpost/hvpost/kvm/kvmtest"
)

// run runs the processor and fails the test unless the exit is of kind want.
func run(t testing.TB, v *kvm.VCPU, want kvm.Reason) *kvm.Exit {
	t.Helper()
	e, err := v.Run()
	if err != nil {
		regs, _ := v.Regs()
		t.Fatalf("Run: %v (RIP %#x)", err, regs.RIP)
	}
	if e.Reason != want {
		regs, _ := v.Regs()
		t.Fatalf("exit %v, want %v (RIP %#x)", e, want, regs.RIP)
	}
	return e
}

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRealMode adds two numbers in real mode and prints the digit.
func TestRealMode(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Real(
		0xBA, 0xF8, 0x03, // mov dx, 0x3f8
		0xB0, 2, // mov al, 2
		0x04, 3, // add al, 3
		0x04, '0', // add al, '0'
		0xEE, // out dx, al
		0xF4, // hlt
	))
	e := run(t, g.VCPU, kvm.ExitIO)
	if !e.IO.Out || e.IO.Size != 1 || e.IO.Port != 0x3F8 || e.IO.Count != 1 || string(e.IO.Data) != "5" {
		t.Fatalf("exit %v with %q", e, e.IO.Data)
	}
	run(t, g.VCPU, kvm.ExitHLT)
}

// TestLongMode checks that 64-bit code runs and sees its full registers.
func TestLongMode(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0x48, 0xB8, 8, 7, 6, 5, 4, 3, 2, 1, // mov rax, 0x0102030405060708
		0x49, 0x89, 0xC7, // mov r15, rax
		0x48, 0x31, 0xC0, // xor rax, rax
		0xE7, 0x80, // out 0x80, eax
		0xF4,
	))
	e := run(t, g.VCPU, kvm.ExitIO)
	if e.IO.Port != 0x80 || e.IO.Size != 4 || len(e.IO.Data) != 4 {
		t.Fatalf("exit %v", e)
	}
	r, err := g.VCPU.Regs()
	must(t, err)
	if r.R15 != 0x0102030405060708 || r.RAX != 0 {
		t.Errorf("R15 %#x, RAX %#x", r.R15, r.RAX)
	}
	run(t, g.VCPU, kvm.ExitHLT)
}
