"""What a real installation is made of; a package only so that the boards can be built."""
