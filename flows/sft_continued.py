"""The control: fine-tune further for as many tokens as DPO trains on."""

from flows.stage import main

if __name__ == "__main__":
    main("sft_continued")
