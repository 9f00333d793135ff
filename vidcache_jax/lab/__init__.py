"""The policy lab: the same prompts and seeds under several policies, measured and shown.

comparison   what is to be run            runs       runs it, resumably, a folder for each
failures     what could not be made       outputs    all that is made of the runs
figures      tables of all results        side_by_side, plots, report    what one looks at
vbench       clips out to VBench, its scores back in
"""
