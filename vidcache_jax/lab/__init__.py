"""The policy lab: the same prompts and seeds under several policies, measured and shown.

comparison   what is to be run            runs       runs it, resumably, a folder for each
figures      tables of all results        side_by_side, plots, report    what one looks at
vbench       clips out to VBench, its scores back in
"""
